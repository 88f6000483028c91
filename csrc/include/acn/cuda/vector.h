// What the CUDA kernels are told beyond rows.h: pointers into the memory of one device.
//
// Every function enqueues its kernels on `stream`, waits for nothing, and returns the error of the
// launch. Sums and statistics are fp32; rows are fp32, bf16 or fp16; nothing is read before it is
// reached in stream order, so that the scalars may be results of earlier kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "acn/rows.h"

namespace acn::cuda {

// [D] without gaps; null: left out.
struct Vector {
  const void* data = nullptr;
  Dtype dtype = Dtype::f32;
};

// The widest rows that the threads of a block hold in registers; wider ones are
// cudaErrorInvalidValue. Eight less than a power of two: a row that starts off a 16-byte boundary
// takes one more access.
constexpr int64_t kMaxWidth = 16384 - 8;
constexpr int64_t kMaxExitWidth = 8192 - 8;

}  // namespace acn::cuda
