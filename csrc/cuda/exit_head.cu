#include "acn/cuda/exit_head.h"

#include <cmath>

#include "launch.cuh"
#include "row_norm.cuh"

namespace acn::cuda {
namespace {

constexpr int kBlock = 256;

// kThreads threads hold a token, kChunks chunks each, and have kTokens of them under way.
template <int threads, int chunks>
struct BlockShape {
  static constexpr int kThreads = threads;
  static constexpr int kChunks = chunks;
  static constexpr int kTokens = 4 / chunks;
  static constexpr int kGroups = kBlock / threads;
  static constexpr int kWidth = threads * chunks * kChunk;
};

// Softmax over some classes: with t = z - top and p = e^t, the entropy is
// log(sum p) - sum(p t) / sum(p), the largest probability 1 / sum(p). No large terms.
struct Softmax {
  float top = -INFINITY;
  float next = -INFINITY;  // the largest but one
  float total = 0.0f;      // sum p
  float moment = 0.0f;     // sum p t

  static __device__ __forceinline__ Softmax of(float z) {
    // NaN and +inf make the sum NaN and with it all that is read from it.
    if (z == -INFINITY) return {z, z, 0.0f, 0.0f};
    return {z, -INFINITY, z - z == 0.0f ? 1.0f : NAN, 0.0f};
  }

  // Takes other classes in.
  __device__ __forceinline__ void add(Softmax other) {
    const float before = top;
    raise(other.top, other.next);
    rescale(before, top);
    other.rescale(other.top, top);
    total += other.total;
    moment += other.moment;
  }

  // Takes in what kLanes neighbours of a warp hold, the same to the bit in each of them. All know
  // the top before the first exponential.
  template <int kLanes>
  __device__ __forceinline__ void add_lanes() {
    const float before = top;
#pragma unroll
    for (int lane = kLanes / 2; lane > 0; lane /= 2) {
      const float other_top = __shfl_xor_sync(0xffffffffu, top, lane);
      const float other_next = __shfl_xor_sync(0xffffffffu, next, lane);
      raise(other_top, other_next);
    }
    rescale(before, top);
    float sums[2] = {total, moment};
    lane_sums<kLanes>(sums);
    total = sums[0];
    moment = sums[1];
  }

  // What the criterion compares; NaN where no class can be.
  __device__ __forceinline__ float certainty(Criterion criterion) const {
    if (total == 0.0f) return NAN;
    if (criterion == Criterion::entropy) return logf(total) - moment / total;
    return (criterion == Criterion::margin ? 1.0f - expf(next - top) : 1.0f) / total;
  }

 private:
  __device__ __forceinline__ void raise(float other_top, float other_next) {
    next = fmaxf(fminf(top, other_top), fmaxf(next, other_next));
    top = fmaxf(top, other_top);
  }

  // Makes sums relative to one top relative to another. Without the choice, classes that cannot be
  // would make 0 * -inf of what is 0.
  __device__ __forceinline__ void rescale(float from, float to) {
    const float t = total == 0.0f ? 0.0f : from - to;
    const float p = expf(t);
    moment = p * (moment + t * total);
    total = p * total;
  }
};

template <class X>
__device__ __forceinline__ const X* row_of(const Tokens& tokens, int64_t sample, int64_t token) {
  return static_cast<const X*>(tokens.data) + sample * tokens.sample_stride +
         token * tokens.token_stride;
}

template <class X>
__device__ __forceinline__ bool all_on_boundaries(const Tokens& tokens) {
  constexpr int64_t kEach = 16 / sizeof(X);
  return on_boundary(tokens.data) && tokens.sample_stride % kEach == 0 &&
         tokens.token_stride % kEach == 0;
}

// y + scale * x for every kGroups-th token from `first` on; 0 for those that do not exist.
template <class X, class Shape>
__device__ __forceinline__ void terms(const ExitHead& args, int64_t sample, int64_t first,
                                      const Columns& columns, float scale,
                                      float (&u)[Shape::kTokens][Shape::kChunks][kChunk]) {
  Chunk<X> x[Shape::kTokens][Shape::kChunks];
  Chunk<float> y[Shape::kTokens][Shape::kChunks];
  const bool whole = columns.width % kChunk == 0 && all_on_boundaries<X>(args.x) &&
                     all_on_boundaries<float>(args.y);
  const auto read = [&](auto& chunk, const auto* row, int c) {
    if (whole) {
      chunk.read(row + columns.begin(c));
    } else {
      chunk.read_some(row, columns, c);
    }
  };
#pragma unroll
  for (int t = 0; t < Shape::kTokens; ++t) {
    const int64_t token = first + t * Shape::kGroups;
#pragma unroll
    for (int k = 0; k < Shape::kChunks; ++k) {
      const int c = k * Shape::kThreads + static_cast<int>(threadIdx.x);
      const bool exists = token < args.tokens && columns.begin(c) < columns.width;
      x[t][k].clear();
      y[t][k].clear();
      if (exists) read(x[t][k], row_of<X>(args.x, sample, token), c);
      if (exists && args.y.data) read(y[t][k], row_of<float>(args.y, sample, token), c);
    }
  }
#pragma unroll
  for (int t = 0; t < Shape::kTokens; ++t) {
#pragma unroll
    for (int k = 0; k < Shape::kChunks; ++k) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) u[t][k][j] = y[t][k][j] + scale * widen(x[t][k][j]);
    }
  }
}

// The mean over tokens of the norm without its weight and bias: they are the same for all tokens
// and can wait. Groups of kThreads threads take tokens in turn; the result is in the first row of
// `sums`, and zero where there are no columns.
template <class X, class Shape>
__device__ __forceinline__ void pool(const ExitHead& args, int64_t sample, const Columns& columns,
                                     float (&sums)[Shape::kGroups][Shape::kWidth]) {
  const int thread = static_cast<int>(threadIdx.x), group = static_cast<int>(threadIdx.y);
  const float scale = args.scale ? *args.scale : 1.0f;
  float sum[Shape::kChunks][kChunk] = {};
  // All groups go as far, for they meet inside; beyond the last token there are zeros to add.
  for (int64_t begin = 0; begin < args.tokens; begin += Shape::kGroups * Shape::kTokens) {
    float u[Shape::kTokens][Shape::kChunks][kChunk];
    terms<X, Shape>(args, sample, begin + group, columns, scale, u);
    Moments m[Shape::kTokens];
#pragma unroll
    for (int t = 0; t < Shape::kTokens; ++t) m[t] = {0.0f, 1.0f};
    if (args.norm != Norm::none) {
      moments<Shape::kThreads>(u, columns, args.norm, args.eps, m);
    }
#pragma unroll
    for (int t = 0; t < Shape::kTokens; ++t) {
      if (begin + group + t * Shape::kGroups >= args.tokens) continue;
#pragma unroll
      for (int k = 0; k < Shape::kChunks; ++k) {
#pragma unroll
        for (int j = 0; j < kChunk; ++j) sum[k][j] += (u[t][k][j] - m[t].mean) * m[t].rstd;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < Shape::kChunks; ++k) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      sums[group][(k * Shape::kThreads + thread) * kChunk + j] = sum[k][j];
    }
  }
  // A thread takes a column of each block of them; what the next one needs is read ahead.
  const float each = 1.0f / static_cast<float>(args.tokens);
  const int first = group * Shape::kThreads + thread;
  const auto affine = [&](int column) {
    if (column >= columns.width) return uint2{0, 0};
    return uint2{bits_of(args.norm_weight, column), bits_of(args.norm_bias, column)};
  };
  uint2 next = affine(first);
  __syncthreads();
#pragma unroll 1
  for (int begin = 0; begin < Shape::kWidth; begin += kBlock) {
    const int column = begin + first;
    const float weight = number_of(args.norm_weight, next.x, 1.0f);
    const float bias = number_of(args.norm_bias, next.y, 0.0f);
    next = affine(column + kBlock);
    if (column >= Shape::kWidth) break;
    float total = sums[0][column];
#pragma unroll
    for (int g = 1; g < Shape::kGroups; ++g) total += sums[g][column];  // the same in every run
    sums[0][column] = column < columns.width ? total * each * weight + bias : 0.0f;
  }
  __syncthreads();
}

// The head: groups of kLanes threads take classes in turn, of which each thread keeps its own. The
// softmax is of those.
template <class X, int kLanes>
__device__ __forceinline__ Softmax classify(const ExitHead& args, X* logits,
                                            const Columns& columns, const float* pooled,
                                            int thread) {
  constexpr int kGroups = kBlock / kLanes;
  const int lane = thread % kLanes, group = thread / kLanes;
  const X* bias = static_cast<const X*>(args.bias);
  Softmax softmax;
  for (int64_t begin = group; begin - group < args.classes; begin += kBlock) {
    const int64_t own = begin + lane * kGroups;
    const float shift = bias && own < args.classes ? widen(bias[own]) : 0.0f;
    float of_own = 0.0f;
#pragma unroll 2
    for (int i = 0; i < kLanes && begin - group + i * kGroups < args.classes; ++i) {
      const int64_t k = begin + i * kGroups;
      const X* weight = static_cast<const X*>(args.weight) + k * columns.width;
      float z[1] = {};
      for (int c = lane; k < args.classes && c * kChunk < columns.width; c += kLanes) {
        float w[kChunk];
        load(weight, columns, c, w);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) z[0] += w[j] * pooled[c * kChunk + j];
      }
      lane_sums<kLanes>(z);
      if (i == lane) of_own = z[0];
    }
    if (own < args.classes) {
      const X rounded = narrow<X>(of_own + shift);
      logits[own] = rounded;
      softmax.add(Softmax::of(widen(rounded)));  // the decision is on what is handed out
    }
  }
  return softmax;
}

// One block takes one row.
template <class X, class Shape>
__global__ void __launch_bounds__(kBlock, 2) exit_head_kernel(ExitHead args) {
  constexpr int kWarps = kBlock / 32;
  __shared__ __align__(16) float sums[Shape::kGroups][Shape::kWidth];
  __shared__ Softmax of_warp[kWarps];
  const Columns columns{static_cast<int>(args.width), 0};
  const int thread = static_cast<int>(threadIdx.y * Shape::kThreads + threadIdx.x);
  for (int64_t row = blockIdx.x; row < args.samples; row += gridDim.x) {
    const int64_t sample = args.sample ? args.sample[row] : row;
    if (sample < 0) {
      if (thread == 0) args.stays[row] = false;
      continue;
    }
    pool<X, Shape>(args, row, columns, sums);
    X* logits = static_cast<X*>(args.logits) + sample * args.classes;
    constexpr int kLanes = Shape::kThreads < 32 ? Shape::kThreads : 32;
    Softmax softmax = classify<X, kLanes>(args, logits, columns, sums[0], thread);
    softmax.template add_lanes<32>();
    if (thread % 32 == 0) of_warp[thread / 32] = softmax;
    __syncthreads();
    if (thread < 32) {
      softmax = of_warp[thread % kWarps];
      softmax.template add_lanes<kWarps>();
    }
    if (thread == 0) {
      const float sure = softmax.certainty(args.criterion);
      const bool below = args.criterion == Criterion::entropy;
      const bool leaves = below ? sure < args.threshold : sure > args.threshold;  // NaN is neither
      args.certainty[row] = sure;
      args.stays[row] = !leaves;
      if (args.depth) args.depth[sample] = args.stop;
      if (args.sample && leaves) args.sample[row] = -1;
      if (!leaves) atomicAdd(args.live, 1);  // whole numbers: the order does not show
    }
    __syncthreads();
  }
}

template <class X, class Shape>
cudaError_t launch(const ExitHead& args, cudaStream_t stream) {
  const dim3 block(Shape::kThreads, Shape::kGroups);
  exit_head_kernel<X, Shape><<<blocks_for(args.samples, 1), block, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t exit_head(const ExitHead& args, cudaStream_t stream) {
  if (args.width > kMaxExitWidth || args.width < 1 || args.tokens < 1 || args.classes < 1) {
    return cudaErrorInvalidValue;
  }
  if (args.samples == 0) return cudaSuccess;
  return with_type(args.dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    if (args.width <= BlockShape<16, 1>::kWidth) return launch<X, BlockShape<16, 1>>(args, stream);
    if (args.width <= BlockShape<32, 1>::kWidth) return launch<X, BlockShape<32, 1>>(args, stream);
    if (args.width <= BlockShape<32, 2>::kWidth) return launch<X, BlockShape<32, 2>>(args, stream);
    if (args.width <= BlockShape<32, 4>::kWidth) return launch<X, BlockShape<32, 4>>(args, stream);
    return launch<X, BlockShape<256, 4>>(args, stream);
  });
}

}  // namespace acn::cuda
