#include "acn/cuda/bias_norm.h"

#include "launch.cuh"
#include "row_norm.cuh"

namespace acn::cuda {
namespace {

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kBlock) bias_norm_kernel(BiasNorm args) {
  constexpr int kThreads = Shape::kThreads;
  constexpr int kChunks = Shape::kChunks;
  const int width = static_cast<int>(args.width);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t rows = args.samples * args.tokens;
  const int64_t step = static_cast<int64_t>(gridDim.x) * Shape::kRows;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * Shape::kRows + threadIdx.y; row < rows;
       row += step) {
    T* z = static_cast<T*>(args.z.data) + row * args.width;
    const Columns columns = Columns::aligned_to(z, width);
    const uint32_t bits = bits_of(args.token_bias, row % args.tokens);
    float u[kChunks][kChunk];
#pragma unroll
    for (int k = 0; k < kChunks; ++k) load(z, columns, k * kThreads + thread, u[k]);
    const float shift = number_of(args.token_bias, bits, 0.0f);
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        if (columns.has(k * kThreads + thread, j)) u[k][j] += shift;
      }
    }
    const Moments m = moments<kThreads>(u, columns, Norm::layer, args.eps);
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int c = k * kThreads + thread;
      normalise(u[k], columns, c, m, args.weight, args.bias);
      store(z, columns, c, u[k]);
    }
  }
}

}  // namespace

cudaError_t bias_norm(const BiasNorm& args, cudaStream_t stream) {
  if (args.samples == 0 || args.tokens == 0 || args.width == 0) return cudaSuccess;
  return with_type(args.z.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const Rows rows{args.z.data, args.width, args.z.dtype};
    return with_shape(padded_width(rows, args.width), [&](auto shape) {
      using Shape = decltype(shape);
      const dim3 block(Shape::kThreads, Shape::kRows);
      bias_norm_kernel<T, Shape>
          <<<blocks_for(args.samples * args.tokens, Shape::kRows), block, 0, stream>>>(args);
      return cudaGetLastError();
    });
  });
}

}  // namespace acn::cuda
