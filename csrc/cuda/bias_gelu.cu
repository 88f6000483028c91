#include "acn/cuda/bias_gelu.h"

#include <cmath>

#include "launch.cuh"

namespace acn::cuda {
namespace {

constexpr int kBlock = 256;

// threadIdx.y takes a token, threadIdx.x walks over its chunks.
template <class T>
__global__ void __launch_bounds__(kBlock) bias_gelu_kernel(BiasGelu args) {
  const int64_t rows = args.samples * args.tokens;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows;
       row += step) {
    T* z = static_cast<T*>(args.z.data) + row * args.width;
    const Columns columns = Columns::aligned_to(z, static_cast<int>(args.width));
    const float bias = number_of(args.bias, bits_of(args.bias, row % args.tokens), 0.0f);
    for (int c = static_cast<int>(threadIdx.x); columns.begin(c) < columns.width;
         c += static_cast<int>(blockDim.x)) {
      float v[kChunk];
      load(z, columns, c, v);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        v[j] += bias;
        v[j] = 0.5f * v[j] * (1.0f + erff(v[j] * 0.70710678118654752f));
      }
      store(z, columns, c, v);
    }
  }
}

}  // namespace

cudaError_t bias_gelu(const BiasGelu& args, cudaStream_t stream) {
  if (args.samples == 0 || args.tokens == 0 || args.width == 0) return cudaSuccess;
  return with_type(args.z.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    unsigned along = 1;
    while (along < kBlock && along * kChunk < args.width) along *= 2;
    const dim3 block(along, kBlock / along);
    bias_gelu_kernel<T>
        <<<blocks_for(args.samples * args.tokens, block.y), block, 0, stream>>>(args);
    return cudaGetLastError();
  });
}

}  // namespace acn::cuda
