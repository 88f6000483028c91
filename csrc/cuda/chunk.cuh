// A row in the registers of a group of threads, eight columns at a time.
//
// Chunks lie on the 16-byte boundaries of memory, not on multiples of eight columns: a row that
// starts off a boundary has a part of a chunk at its beginning, and most have one at their end.
// Those go element by element, whole chunks in accesses of 16 bytes wherever the tensor at hand is
// aligned there: the tensors of one row may differ in that.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "acn/cuda/vector.h"

namespace acn::cuda {

constexpr int kChunk = 8;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T narrow(float value);
template <>
__device__ __forceinline__ float narrow<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// One number of a vector as it lies in memory, which nobody waits for yet, and what it says.
__device__ __forceinline__ uint32_t bits_of(const Vector& x, int64_t i) {
  if (!x.data) return 0;
  return x.dtype == Dtype::f32 ? static_cast<const uint32_t*>(x.data)[i]
                               : static_cast<const uint16_t*>(x.data)[i];
}

__device__ __forceinline__ float number_of(const Vector& x, uint32_t bits, float without) {
  if (!x.data) return without;
  const auto half = static_cast<uint16_t>(bits);
  switch (x.dtype) {
    case Dtype::f16: return widen(reinterpret_cast<const __half&>(half));
    case Dtype::bf16: return widen(reinterpret_cast<const __nv_bfloat16&>(half));
    default: return reinterpret_cast<const float&>(bits);
  }
}

// Columns of a row by chunk: chunk c holds columns from begin(c) on, of which those in [0, width)
// exist.
struct Columns {
  int width;
  int shift;  // columns of chunk 0 that lie before the row

  template <class T>
  static __device__ __forceinline__ Columns aligned_to(const T* row, int width) {
    return {width, static_cast<int>((reinterpret_cast<uintptr_t>(row) & 15) / sizeof(T))};
  }

  __device__ __forceinline__ int begin(int c) const { return c * kChunk - shift; }
  __device__ __forceinline__ bool whole(int c) const {
    return begin(c) >= 0 && begin(c) + kChunk <= width;
  }
  __device__ __forceinline__ bool has(int c, int j) const {
    return static_cast<unsigned>(begin(c) + j) < static_cast<unsigned>(width);
  }
};

__device__ __forceinline__ bool on_boundary(const void* at) {
  return (reinterpret_cast<uintptr_t>(at) & 15) == 0;
}

template <class T>
union Access {
  static constexpr int kEach = 16 / sizeof(T);
  uint4 bits;
  T values[kEach];
  __device__ Access() {}
};

// A chunk as it lies in memory: many can be under way before the first is waited for.
template <class T>
struct Chunk {
  static constexpr int kParts = kChunk / Access<T>::kEach;
  Access<T> parts[kParts];

  __device__ __forceinline__ T& operator[](int j) {
    return parts[j / Access<T>::kEach].values[j % Access<T>::kEach];
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int part = 0; part < kParts; ++part) parts[part].bits = {0, 0, 0, 0};
  }
  // All of it, from a 16-byte boundary.
  __device__ __forceinline__ void read(const T* at) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      parts[part].bits = reinterpret_cast<const uint4*>(at)[part];
    }
  }
  // What exists of chunk c of a row.
  __device__ __forceinline__ void read_some(const T* row, const Columns& columns, int c) {
    clear();
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (columns.has(c, j)) (*this)[j] = row[columns.begin(c) + j];
    }
  }
};

// Columns that do not exist read as zero.
template <class T>
__device__ __forceinline__ void load(const T* row, const Columns& columns, int c, float* v) {
  const T* at = row + columns.begin(c);
  Chunk<T> chunk;
  if (columns.whole(c) && on_boundary(at)) {
    chunk.read(at);
  } else {
    chunk.read_some(row, columns, c);
  }
#pragma unroll
  for (int j = 0; j < kChunk; ++j) v[j] = widen(chunk[j]);
}

template <class T>
__device__ __forceinline__ void store(T* row, const Columns& columns, int c, const float* v) {
  T* at = row + columns.begin(c);
  if (columns.whole(c) && on_boundary(at)) {
    constexpr int kEach = Access<T>::kEach;
#pragma unroll
    for (int part = 0; part < kChunk / kEach; ++part) {
      Access<T> access;
#pragma unroll
      for (int j = 0; j < kEach; ++j) access.values[j] = narrow<T>(v[part * kEach + j]);
      reinterpret_cast<uint4*>(at)[part] = access.bits;
    }
  } else {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (columns.has(c, j)) at[j] = narrow<T>(v[j]);
    }
  }
}

// The same for a type known at run time only; a branch that all threads take alike.
__device__ __forceinline__ void load(const void* data, Dtype dtype, int64_t offset,
                                     const Columns& columns, int c, float* v) {
  switch (dtype) {
    case Dtype::f16: return load(static_cast<const __half*>(data) + offset, columns, c, v);
    case Dtype::bf16: return load(static_cast<const __nv_bfloat16*>(data) + offset, columns, c, v);
    default: return load(static_cast<const float*>(data) + offset, columns, c, v);
  }
}

__device__ __forceinline__ void store(const OutRows& out, int64_t offset, const Columns& columns,
                                      int c, const float* v) {
  switch (out.dtype) {
    case Dtype::f16: return store(static_cast<__half*>(out.data) + offset, columns, c, v);
    case Dtype::bf16: return store(static_cast<__nv_bfloat16*>(out.data) + offset, columns, c, v);
    default: return store(static_cast<float*>(out.data) + offset, columns, c, v);
  }
}

}  // namespace acn::cuda
