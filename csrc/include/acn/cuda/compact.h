// compact on a GPU: the samples that stay move to the front, in their order; no host waits.
#pragma once

#include "acn/cuda/vector.h"

namespace acn::cuda {

struct Places {
  int64_t samples = 0;
  const bool* stays = nullptr;
  int32_t* places = nullptr;  // how many samples before this one stay, or -1 where it does not
  int32_t* count = nullptr;   // how many stay; null: left out
  // A number of each sample, moved to the front of `to`, where `kept` fit; the rest there becomes
  // -1. Null: left out.
  const int32_t* from = nullptr;
  int32_t* to = nullptr;
  int64_t kept = 0;
};

cudaError_t compaction_places(const Places& args, cudaStream_t stream);

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
