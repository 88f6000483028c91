// compact on a GPU: the samples that stay move to the front, in their order; no host waits.
#pragma once

#include "acn/cuda/vector.h"

namespace acn::cuda {

// places[b] = how many samples before b stay, or -1 where b does not; count = how many stay.
cudaError_t compaction_places(const bool* stays, int64_t samples, int32_t* places, int32_t* count,
                              cudaStream_t stream);

struct Compaction {
  int64_t samples = 0;
  int64_t kept = 0;  // room in `to`; staying samples beyond it are dropped
  const int32_t* places = nullptr;
  const void* from = nullptr;  // samples of `bytes` adjacent bytes, `stride` bytes apart
  int64_t stride = 0;
  int64_t bytes = 0;
  void* to = nullptr;  // without gaps; what lies past the count is not written
};

cudaError_t compact(const Compaction& args, cudaStream_t stream);

}  // namespace acn::cuda
