// Mean, rstd and norm of rows held by kThreads threads, kChunks chunks each.
#pragma once

#include "chunk.cuh"

namespace acn::cuda {

// Sums over groups of kLanes neighbours in a warp, the same to the bit in each of them. Several at
// once: the lanes wait for one exchange while the next is under way.
template <int kLanes, int kSums>
__device__ __forceinline__ void lane_sums(float (&values)[kSums]) {
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      values[i] += __shfl_xor_sync(0xffffffffu, values[i], lane);
    }
  }
}

// The sums over the threads that hold a row, the same to the bit in each of them: a warp or a part
// of one, or all of the block.
template <int kThreads, int kSums>
__device__ __forceinline__ void row_sums(float (&values)[kSums]) {
  lane_sums<kThreads < 32 ? kThreads : 32>(values);
  if constexpr (kThreads > 32) {
    constexpr int kWarps = kThreads / 32;
    __shared__ float of_warp[kWarps][kSums];
    __syncthreads();  // the last sums have been read
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32][i] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      values[i] = of_warp[0][i];
#pragma unroll
      for (int warp = 1; warp < kWarps; ++warp) values[i] += of_warp[warp][i];
    }
  }
}

struct Moments {
  float mean;  // 0 for RMSNorm, which does not centre
  float rstd;
};

// Of several rows. Two sweeps over registers: no cancellation where the mean is large.
template <int kThreads, int kRows, int kChunks>
__device__ __forceinline__ void moments(const float (&u)[kRows][kChunks][kChunk],
                                        const Columns& columns, Norm norm, float eps,
                                        Moments (&m)[kRows]) {
  const float each = 1.0f / static_cast<float>(columns.width);
  float sums[kRows] = {};
  if (norm == Norm::layer) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
#pragma unroll
        for (int j = 0; j < kChunk; ++j) sums[row] += u[row][k][j];
      }
    }
    row_sums<kThreads>(sums);
  }
  float squares[kRows] = {};
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    m[row].mean = sums[row] * each;
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        const bool exists = columns.has(k * kThreads + static_cast<int>(threadIdx.x), j);
        const float deviation = exists ? u[row][k][j] - m[row].mean : 0.0f;
        squares[row] += deviation * deviation;
      }
    }
  }
  row_sums<kThreads>(squares);
#pragma unroll
  for (int row = 0; row < kRows; ++row) m[row].rstd = rsqrtf(squares[row] * each + eps);
}

// Of one row.
template <int kThreads, int kChunks>
__device__ __forceinline__ Moments moments(const float (&u)[kChunks][kChunk],
                                           const Columns& columns, Norm norm, float eps) {
  Moments m[1];
  moments<kThreads>(reinterpret_cast<const float (&)[1][kChunks][kChunk]>(u), columns, norm, eps,
                    m);
  return m[0];
}

// u = (u - mean) * rstd * weight + bias for chunk c
__device__ __forceinline__ void normalise(float* u, const Columns& columns, int c,
                                          const Moments& m, const Vector& weight,
                                          const Vector& bias) {
  float v[kChunk];
#pragma unroll
  for (int j = 0; j < kChunk; ++j) u[j] = (u[j] - m.mean) * m.rstd;
  if (weight.data) {
    load(weight.data, weight.dtype, 0, columns, c, v);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) u[j] *= v[j];
  }
  if (bias.data) {
    load(bias.data, bias.dtype, 0, columns, c, v);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) u[j] += v[j];
  }
}

}  // namespace acn::cuda
