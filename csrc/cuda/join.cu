#include "acn/cuda/join.h"

#include <type_traits>

#include "launch.cuh"
#include "row_norm.cuh"

namespace acn::cuda {
namespace {

struct Mixed {};  // terms of several types: each says its own

// A launch adds up to kTermsPerLaunch terms; those of more than one launch meet in y.
struct Part {
  Rows xs[kTermsPerLaunch];
  int terms;
  const float* scales;
  bool first;  // y does not hold a sum yet
  bool last;   // the norm and the output are due
};

template <class X, int kThreads, int kChunks>
__device__ __forceinline__ void add_term(float (&sum)[kChunks][kChunk], const Rows& x, int64_t row,
                                         const Columns& columns, float scale) {
  float v[kChunks][kChunk];
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int c = k * kThreads + static_cast<int>(threadIdx.x);
    if constexpr (std::is_same_v<X, Mixed>) {
      load(x.data, x.dtype, row * x.stride, columns, c, v[k]);
    } else {
      load(static_cast<const X*>(x.data) + row * x.stride, columns, c, v[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) sum[k][j] += scale * v[k][j];
  }
}

template <class X, class Shape>
__global__ void __launch_bounds__(Shape::kBlock, Shape::kBlocks) join_kernel(Join args, Part part) {
  constexpr int kThreads = Shape::kThreads;
  constexpr int kChunks = Shape::kChunks;
  const int width = static_cast<int>(args.width);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t step = static_cast<int64_t>(gridDim.x) * Shape::kRows;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * Shape::kRows + threadIdx.y;
       row < args.rows; row += step) {
    Columns columns{width, 0};
    if constexpr (!std::is_same_v<X, Mixed>) {
      columns = Columns::aligned_to(
          static_cast<const X*>(part.xs[0].data) + row * part.xs[0].stride, width);
    }
    float sum[kChunks][kChunk] = {};
    float* y = args.y ? args.y + row * width : nullptr;
    if (!part.first) {
#pragma unroll
      for (int k = 0; k < kChunks; ++k) load(y, columns, k * kThreads + thread, sum[k]);
    }
#pragma unroll(kChunks == 1 ? 4 : 1)
    for (int i = 0; i < part.terms; ++i) {
      const float scale = part.scales ? part.scales[i] : 1.0f;
      add_term<X, kThreads>(sum, part.xs[i], row, columns, scale);
    }
    if (y) {
#pragma unroll
      for (int k = 0; k < kChunks; ++k) store(y, columns, k * kThreads + thread, sum[k]);
    }
    if (!part.last) continue;
    Moments m{0.0f, 1.0f};
    if (args.norm != Norm::none) {
      m = moments<kThreads>(sum, columns, args.norm, args.eps);
      if (thread == 0 && args.mean) args.mean[row] = m.mean;
      if (thread == 0 && args.rstd) args.rstd[row] = m.rstd;
    }
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int c = k * kThreads + thread;
      if (args.norm != Norm::none) normalise(sum[k], columns, c, m, args.weight, args.bias);
      store(args.out, row * width, columns, c, sum[k]);
    }
  }
}

template <class X>
cudaError_t launch(const Join& args, const Part& part, int64_t padded, cudaStream_t stream) {
  return with_shape(padded, [&](auto shape) {
    using Shape = decltype(shape);
    const dim3 block(Shape::kThreads, Shape::kRows);
    join_kernel<X, Shape>
        <<<blocks_for(args.rows, Shape::kRows), block, 0, stream>>>(args, part);
    return cudaGetLastError();
  });
}

}  // namespace

cudaError_t join(const Join& args, cudaStream_t stream) {
  if (args.terms < 1 || (args.terms > kTermsPerLaunch && !args.y)) return cudaErrorInvalidValue;
  if (args.rows == 0) return cudaSuccess;
  for (int64_t begin = 0; begin < args.terms; begin += kTermsPerLaunch) {
    Part part{};
    part.terms = static_cast<int>(std::min<int64_t>(kTermsPerLaunch, args.terms - begin));
    part.scales = args.scales ? args.scales + begin : nullptr;
    part.first = begin == 0;
    part.last = begin + part.terms == args.terms;
    bool mixed = false;
    for (int i = 0; i < part.terms; ++i) {
      part.xs[i] = args.xs[begin + i];
      if (part.xs[i].dtype == Dtype::f64) return cudaErrorInvalidValue;
      mixed |= part.xs[i].dtype != part.xs[0].dtype;
    }
    const int64_t padded = mixed ? args.width : padded_width(part.xs[0], args.width);
    const cudaError_t error =
        mixed ? launch<Mixed>(args, part, padded, stream)
              : with_type(part.xs[0].dtype, [&](auto type) {
                  return launch<typename decltype(type)::type>(args, part, padded, stream);
                });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace acn::cuda
