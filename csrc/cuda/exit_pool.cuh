// The mean over tokens of norm(y + scale * x), by a block for each sample.
#pragma once

#include "acn/cuda/exit_head.h"
#include "row_norm.cuh"

namespace acn::cuda {

// kThreads threads of a block hold a token, kChunks chunks each, with kTokens of them under way.
template <int threads, int chunks, int block>
struct BlockShape {
  static constexpr int kBlock = block;
  static constexpr int kThreads = threads;
  static constexpr int kChunks = chunks;
  static constexpr int kTokens = 4 / chunks;
  static constexpr int kGroups = kBlock / threads;
  static constexpr int kWidth = threads * chunks * kChunk;
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
  for (int begin = 0; begin < Shape::kWidth; begin += Shape::kBlock) {
    const int column = begin + first;
    const float weight = number_of(args.norm_weight, next.x, 1.0f);
    const float bias = number_of(args.norm_bias, next.y, 0.0f);
    next = affine(column + Shape::kBlock);
    if (column >= Shape::kWidth) break;
    float total = sums[0][column];
#pragma unroll
    for (int g = 1; g < Shape::kGroups; ++g) total += sums[g][column];  // the same in every run
    sums[0][column] = column < columns.width ? total * each * weight + bias : 0.0f;
  }
  __syncthreads();
}

// run(BlockShape) for the smallest that holds a token. Wide tokens take blocks of 256 threads, or
// their sums would not fit.
template <int block, class Run>
cudaError_t with_block_shape(int64_t width, const Run& run) {
  if (width <= BlockShape<16, 1, block>::kWidth) return run(BlockShape<16, 1, block>{});
  if (width <= BlockShape<32, 1, block>::kWidth) return run(BlockShape<32, 1, block>{});
  if (width <= BlockShape<32, 2, block>::kWidth) return run(BlockShape<32, 2, block>{});
  if (width <= BlockShape<32, 4, 256>::kWidth) return run(BlockShape<32, 4, 256>{});
  return run(BlockShape<256, 4, 256>{});
}

}  // namespace acn::cuda
