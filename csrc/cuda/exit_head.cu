#include "acn/cuda/exit_head.h"

#include "exit_pool.cuh"
#include "launch.cuh"
#include "softmax.cuh"

namespace acn::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;
constexpr int kPoolBlock = 512;  // more tokens under way, where there is nothing else to do

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

// Whether the sample of a row leaves, by the parts of a softmax that the threads of a block hold.
__device__ __forceinline__ void decide(const ExitHead& args, int64_t row, int64_t sample,
                                       Softmax softmax, Softmax (&of_warp)[kWarps], int thread) {
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

// The sample of a row; -1 where it is nobody's.
__device__ __forceinline__ int64_t sample_of(const ExitHead& args, int64_t row) {
  return args.sample ? args.sample[row] : row;
}

// In all three kernels one block takes one row.
template <class X, class Shape>
__global__ void __launch_bounds__(kBlock, 2) exit_head_kernel(ExitHead args) {
  __shared__ __align__(16) float sums[Shape::kGroups][Shape::kWidth];
  __shared__ Softmax of_warp[kWarps];
  const Columns columns{static_cast<int>(args.width), 0};
  const int thread = static_cast<int>(threadIdx.y * Shape::kThreads + threadIdx.x);
  for (int64_t row = blockIdx.x; row < args.samples; row += gridDim.x) {
    const int64_t sample = sample_of(args, row);
    if (sample < 0) {
      if (thread == 0) args.stays[row] = false;
      continue;
    }
    pool<X, Shape>(args, row, columns, sums);
    X* logits = static_cast<X*>(args.logits) + sample * args.classes;
    constexpr int kLanes = Shape::kThreads < 32 ? Shape::kThreads : 32;
    const Softmax softmax = classify<X, kLanes>(args, logits, columns, sums[0], thread);
    decide(args, row, sample, softmax, of_warp, thread);
  }
}

template <class X, class Shape>
__global__ void __launch_bounds__(Shape::kBlock, 512 / Shape::kBlock)
    exit_pool_kernel(ExitHead args, X* pooled) {
  __shared__ __align__(16) float sums[Shape::kGroups][Shape::kWidth];
  const Columns columns{static_cast<int>(args.width), 0};
  const int thread = static_cast<int>(threadIdx.y * Shape::kThreads + threadIdx.x);
  for (int64_t row = blockIdx.x; row < args.samples; row += gridDim.x) {
    if (sample_of(args, row) < 0) continue;
    pool<X, Shape>(args, row, columns, sums);
    for (int64_t c = thread; c < args.width; c += Shape::kBlock) {
      pooled[row * args.width + c] = narrow<X>(sums[0][c]);
    }
    __syncthreads();
  }
}

template <class X>
__global__ void __launch_bounds__(kBlock) exit_decision_kernel(ExitHead args, const X* logits) {
  __shared__ Softmax of_warp[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < args.samples; row += gridDim.x) {
    const int64_t sample = sample_of(args, row);
    if (sample < 0) {
      if (thread == 0) args.stays[row] = false;
      continue;
    }
    X* own = static_cast<X*>(args.logits) + sample * args.classes;
    Softmax softmax;
    for (int64_t k = thread; k < args.classes; k += kBlock) {
      const X z = logits[row * args.classes + k];
      own[k] = z;
      softmax.add(Softmax::of(widen(z)));
    }
    decide(args, row, sample, softmax, of_warp, thread);
  }
}

bool takes(const ExitHead& args) {
  return args.width <= kMaxExitWidth && args.width >= 1 && args.tokens >= 1 && args.classes >= 1;
}

}  // namespace

cudaError_t exit_head(const ExitHead& args, cudaStream_t stream) {
  if (!takes(args)) return cudaErrorInvalidValue;
  if (args.samples == 0) return cudaSuccess;
  return with_type(args.dtype, [&](auto type) {
    return with_block_shape<kBlock>(args.width, [&](auto shape) {
      using X = typename decltype(type)::type;
      using Shape = decltype(shape);
      const dim3 block(Shape::kThreads, Shape::kGroups);
      exit_head_kernel<X, Shape><<<blocks_for(args.samples, 1), block, 0, stream>>>(args);
      return cudaGetLastError();
    });
  });
}

cudaError_t exit_pool(const ExitHead& args, void* pooled, cudaStream_t stream) {
  if (!takes(args)) return cudaErrorInvalidValue;
  if (args.samples == 0) return cudaSuccess;
  return with_type(args.dtype, [&](auto type) {
    return with_block_shape<kPoolBlock>(args.width, [&](auto shape) {
      using X = typename decltype(type)::type;
      using Shape = decltype(shape);
      const dim3 block(Shape::kThreads, Shape::kGroups);
      X* to = static_cast<X*>(pooled);
      exit_pool_kernel<X, Shape><<<blocks_for(args.samples, 1), block, 0, stream>>>(args, to);
      return cudaGetLastError();
    });
  });
}

cudaError_t exit_decision(const ExitHead& args, const void* logits, cudaStream_t stream) {
  if (!takes(args)) return cudaErrorInvalidValue;
  if (args.samples == 0) return cudaSuccess;
  return with_type(args.dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    const X* from = static_cast<const X*>(logits);
    exit_decision_kernel<X><<<blocks_for(args.samples, 1), kBlock, 0, stream>>>(args, from);
    return cudaGetLastError();
  });
}

}  // namespace acn::cuda
