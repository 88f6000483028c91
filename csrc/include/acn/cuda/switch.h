// switch on a GPU: which body of a graph's conditional node runs next, decided without the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace acn::cuda {

// cudaGraphConditionalHandle, which toolkits before 12.3 do not name.
using ConditionalHandle = unsigned long long;

// Sets the node's value to b, where 2^b is the smallest power of two that holds *count, and to
// 2^32 - 1, for which no node has a body, where *count is 0. cudaErrorNotSupported in a build
// with a toolkit before CUDA 12.8, which has no node of several bodies.
cudaError_t set_switch(const int32_t* count, ConditionalHandle handle, cudaStream_t stream);

}  // namespace acn::cuda
