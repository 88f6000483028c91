#include "acn/cuda/exit_head.h"

#include <cmath>

#include "launch.cuh"
#include "row_norm.cuh"

namespace acn::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;

// Softmax over some classes: with t = z - top and p = e^t, the entropy is
// log(sum p) - sum(p t) / sum(p), the largest probability 1 / sum(p). No large terms.
struct Softmax {
  float top = -INFINITY;
  float next = -INFINITY;  // the largest but one
  float total = 0.0f;   // sum p
  float moment = 0.0f;  // sum p t

  // Takes `other` in. Without the choices, classes that cannot be would make 0 * -inf of what is 0.
  __device__ __forceinline__ void add(const Softmax& other) {
    const float higher = fmaxf(top, other.top);
    const float base = higher == -INFINITY ? 0.0f : higher;
    const float mine = total == 0.0f ? 0.0f : top - base;
    const float theirs = other.total == 0.0f ? 0.0f : other.top - base;
    moment = expf(mine) * (moment + mine * total) +
             expf(theirs) * (other.moment + theirs * other.total);
    total = expf(mine) * total + expf(theirs) * other.total;
    next = fmaxf(fminf(top, other.top), fmaxf(next, other.next));
    top = higher;
  }

  static __device__ __forceinline__ Softmax of(float z) {
    // NaN and +inf make the sum NaN and with it all that is read from it.
    if (z == -INFINITY) return {z, z, 0.0f, 0.0f};
    return {z, -INFINITY, z - z == 0.0f ? 1.0f : NAN, 0.0f};
  }

  // What the criterion compares; NaN where no class can be.
  __device__ __forceinline__ float certainty(Criterion criterion) const {
    if (total == 0.0f) return NAN;
    if (criterion == Criterion::entropy) return logf(total) - moment / total;
    return (criterion == Criterion::margin ? 1.0f - expf(next - top) : 1.0f) / total;
  }
};

template <class X>
__device__ __forceinline__ const X* row_of(const Tokens& tokens, int64_t sample, int64_t token) {
  return static_cast<const X*>(tokens.data) + sample * tokens.sample_stride +
         token * tokens.token_stride;
}

// The mean over tokens of the norm without its weight and bias: they are the same for all tokens
// and can wait. Groups of kThreads threads take tokens in turn; the result is in shared memory.
template <class X, int kThreads, int kChunks>
__device__ __forceinline__ void pool(const ExitHead& args, int64_t sample, const Columns& columns,
                                     float* pooled) {
  constexpr int kGroups = kBlock / kThreads;
  const int thread = static_cast<int>(threadIdx.x);
  const float scale = args.scale ? *args.scale : 1.0f;
  float mean[kChunks][kChunk] = {};
  for (int64_t token = threadIdx.y; token < args.tokens; token += kGroups) {
    float u[kChunks][kChunk];
    const X* x = row_of<X>(args.x, sample, token);
#pragma unroll
    for (int k = 0; k < kChunks; ++k) load(x, columns, k * kThreads + thread, u[k]);
    if (args.y.data) {
      const float* y = row_of<float>(args.y, sample, token);
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        float v[kChunk];
        load(y, columns, k * kThreads + thread, v);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) u[k][j] = v[j] + scale * u[k][j];
      }
    } else {
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
#pragma unroll
        for (int j = 0; j < kChunk; ++j) u[k][j] *= scale;
      }
    }
    Moments m{0.0f, 1.0f};
    if (args.norm != Norm::none) m = moments<kThreads>(u, columns, args.norm, args.eps);
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) mean[k][j] += (u[k][j] - m.mean) * m.rstd;
    }
  }
  for (int group = 0; group < kGroups; ++group) {  // in their order: the same in every run
    if (static_cast<int>(threadIdx.y) == group) {
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        float* at = pooled + (k * kThreads + thread) * kChunk;
#pragma unroll
        for (int j = 0; j < kChunk; ++j) at[j] = group == 0 ? mean[k][j] : at[j] + mean[k][j];
      }
    }
    __syncthreads();
  }
  const float count = static_cast<float>(args.tokens);
  const int all = static_cast<int>(threadIdx.y) * kThreads + thread;
  for (int c = all; c * kChunk < columns.width; c += kBlock) {
    float v[kChunk];
#pragma unroll
    for (int j = 0; j < kChunk; ++j) v[j] = pooled[c * kChunk + j] / count;
    normalise(v, columns, c, {0.0f, 1.0f}, args.norm_weight, args.norm_bias);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) pooled[c * kChunk + j] = columns.has(c, j) ? v[j] : 0.0f;
  }
  __syncthreads();
}

// The head: every warp takes classes in turn and keeps the softmax of its own.
template <class X>
__device__ __forceinline__ Softmax classify(const ExitHead& args, X* logits,
                                            const Columns& columns, const float* pooled,
                                            int warp, int lane) {
  const X* bias = static_cast<const X*>(args.bias);
  Softmax softmax;
  for (int64_t k = warp; k < args.classes; k += kWarps) {
    const X* weight = static_cast<const X*>(args.weight) + k * columns.width;
    float z = 0.0f;
#pragma unroll 2
    for (int c = lane; c * kChunk < columns.width; c += 32) {
      float w[kChunk];
      load(weight, columns, c, w);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) z += w[j] * pooled[c * kChunk + j];
    }
    z = warp_sum(z) + (bias ? widen(bias[k]) : 0.0f);
    const X rounded = narrow<X>(z);
    if (lane == 0) logits[k] = rounded;
    softmax.add(Softmax::of(widen(rounded)));  // the decision is on what is handed out
  }
  return softmax;
}

// One block takes one row.
template <class X, int kThreads, int kChunks>
__global__ void __launch_bounds__(kBlock) exit_head_kernel(ExitHead args) {
  __shared__ __align__(16) float pooled[kThreads * kChunks * kChunk];
  __shared__ Softmax of_warp[kWarps];
  const Columns columns{static_cast<int>(args.width), 0};
  const int all = static_cast<int>(threadIdx.y * kThreads + threadIdx.x);
  for (int64_t row = blockIdx.x; row < args.samples; row += gridDim.x) {
    const int64_t sample = args.sample ? args.sample[row] : row;
    if (sample < 0) {
      if (all == 0) args.stays[row] = false;
      continue;
    }
    pool<X, kThreads, kChunks>(args, row, columns, pooled);
    X* logits = static_cast<X*>(args.logits) + sample * args.classes;
    const Softmax own = classify<X>(args, logits, columns, pooled, all / 32, all % 32);
    if (all % 32 == 0) of_warp[all / 32] = own;
    __syncthreads();
    if (all == 0) {
      Softmax softmax = of_warp[0];
      for (int warp = 1; warp < kWarps; ++warp) softmax.add(of_warp[warp]);
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

template <class X, int kThreads, int kChunks>
cudaError_t launch(const ExitHead& args, cudaStream_t stream) {
  const dim3 block(kThreads, kBlock / kThreads);
  exit_head_kernel<X, kThreads, kChunks><<<blocks_for(args.samples, 1), block, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t exit_head(const ExitHead& args, cudaStream_t stream) {
  if (args.width > kMaxExitWidth || args.width < 1 || args.tokens < 1 || args.classes < 1) {
    return cudaErrorInvalidValue;
  }
  const cudaError_t error = cudaMemsetAsync(args.live, 0, sizeof *args.live, stream);
  if (error != cudaSuccess || args.samples == 0) return error;
  return with_type(args.dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    if (args.width <= 256) return launch<X, 32, 1>(args, stream);
    if (args.width <= 1024) return launch<X, 32, 4>(args, stream);
    return launch<X, 256, 4>(args, stream);
  });
}

}  // namespace acn::cuda
