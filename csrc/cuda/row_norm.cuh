// Mean, rstd and norm of a row held by kThreads threads, kChunks chunks each.
#pragma once

#include "chunk.cuh"

namespace acn::cuda {

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

// The sum over the threads that hold one row, the same to the bit in each of them: a warp, or all
// of the block.
template <int kThreads>
__device__ __forceinline__ float row_sum(float value) {
  value = warp_sum(value);
  if constexpr (kThreads > 32) {
    __shared__ float of_warp[kThreads / 32];
    __syncthreads();  // the last sum has been read
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    value = of_warp[0];
#pragma unroll
    for (int warp = 1; warp < kThreads / 32; ++warp) value += of_warp[warp];
  }
  return value;
}

struct Moments {
  float mean;  // 0 for RMSNorm, which does not centre
  float rstd;
};

// Two sweeps over registers: no cancellation where the mean is large.
template <int kThreads, int kChunks>
__device__ __forceinline__ Moments moments(const float (&u)[kChunks][kChunk],
                                           const Columns& columns, Norm norm, float eps) {
  float mean = 0.0f;
  if (norm == Norm::layer) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) sum += u[k][j];
    }
    mean = row_sum<kThreads>(sum) / static_cast<float>(columns.width);
  }
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const float deviation =
          columns.has(k * kThreads + static_cast<int>(threadIdx.x), j) ? u[k][j] - mean : 0.0f;
      squares += deviation * deviation;
    }
  }
  squares = row_sum<kThreads>(squares) / static_cast<float>(columns.width);
  return {mean, 1.0f / sqrtf(squares + eps)};
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
