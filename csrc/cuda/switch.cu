#include "acn/cuda/switch.h"

namespace acn::cuda {
namespace {

__global__ void switch_kernel(const int32_t* count, ConditionalHandle handle) {
  unsigned bucket = 0;
  while ((1 << bucket) < *count) ++bucket;
#if CUDART_VERSION >= 12080
  cudaGraphSetConditional(handle, *count > 0 ? bucket : ~0u);
#endif
}

}  // namespace

cudaError_t set_switch(const int32_t* count, ConditionalHandle handle, cudaStream_t stream) {
  if (CUDART_VERSION < 12080) return cudaErrorNotSupported;
  switch_kernel<<<1, 1, 0, stream>>>(count, handle);
  return cudaGetLastError();
}

}  // namespace acn::cuda
