#include "acn/cuda/accumulate_norm.h"

#include "launch.cuh"
#include "row_norm.cuh"

namespace acn::cuda {
namespace {

// Where row r lies in y; -1 where y does not hold it.
__device__ __forceinline__ int64_t place_of(const RowMap& map, int64_t row) {
  if (!map.place) return row;
  const int32_t at = map.place[row % map.tokens];
  return at < 0 ? -1 : row / map.tokens * map.kept + at;
}

template <class X, class Shape>
__global__ void __launch_bounds__(Shape::kBlock) accumulate_norm_kernel(AccumulateNorm args) {
  constexpr int kThreads = Shape::kThreads;
  constexpr int kChunks = Shape::kChunks;
  const int width = static_cast<int>(args.width);
  const int thread = static_cast<int>(threadIdx.x);
  const float scale = args.scale ? *args.scale : 1.0f;
  const int64_t step = static_cast<int64_t>(gridDim.x) * Shape::kRows;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * Shape::kRows + threadIdx.y;
       row < args.rows; row += step) {
    const X* x = static_cast<const X*>(args.x.data) + row * args.x.stride;
    const Columns columns = Columns::aligned_to(x, width);
    float u[kChunks][kChunk];
#pragma unroll
    for (int k = 0; k < kChunks; ++k) load(x, columns, k * kThreads + thread, u[k]);

    const int64_t y_row = args.y ? place_of(args.y_rows, row) : -1;
    if (y_row >= 0) {
      float* y = args.y + y_row * width;
      float sum[kChunks][kChunk] = {};
      if (!args.first) {
#pragma unroll
        for (int k = 0; k < kChunks; ++k) load(y, columns, k * kThreads + thread, sum[k]);
      }
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
          sum[k][j] += scale * u[k][j];
          if (args.alpha != 1.0f) u[k][j] = args.alpha * u[k][j] + (1.0f - args.alpha) * sum[k][j];
        }
        store(y, columns, k * kThreads + thread, sum[k]);
      }
    }

    Moments m{0.0f, 1.0f};
    if (args.norm != Norm::none) m = moments<kThreads>(u, columns, args.norm, args.eps);
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int c = k * kThreads + thread;
      if (args.norm != Norm::none) normalise(u[k], columns, c, m, args.weight, args.bias);
      store(args.h, row * width, columns, c, u[k]);
    }
  }
}

}  // namespace

cudaError_t accumulate_norm(const AccumulateNorm& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  return with_type(args.x.dtype, [&](auto type) {
    return with_shape(padded_width(args.x, args.width), [&](auto shape) {
      using X = typename decltype(type)::type;
      using Shape = decltype(shape);
      const dim3 block(Shape::kThreads, Shape::kRows);
      accumulate_norm_kernel<X, Shape>
          <<<blocks_for(args.rows, Shape::kRows), block, 0, stream>>>(args);
      return cudaGetLastError();
    });
  });
}

}  // namespace acn::cuda
