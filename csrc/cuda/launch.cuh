// Which kernel takes rows of a width: the numbers in one place.
#pragma once

#include <algorithm>
#include <utility>

#include "chunk.cuh"

namespace acn::cuda {

// kThreads threads hold a row, kChunks chunks each; a block has kRows rows beside each other.
template <int threads, int chunks>
struct Shape {
  static constexpr int kThreads = threads;
  static constexpr int kChunks = chunks;
  static constexpr int kRows = threads == 32 ? 4 : 1;
  static constexpr int kBlock = kThreads * kRows;
  static constexpr int kWidth = kThreads * kChunks * kChunk;
  // Blocks on a processor that the compiler has registers for: more of them, and some would spill.
  static constexpr int kBlocks = chunks == 1 ? 1 : 512 / kBlock;
};

// Rows whose starts all lie on 16-byte boundaries fill their chunks; others may need one more.
inline int64_t padded_width(const Rows& x, int64_t width) {
  const int64_t bytes = x.dtype == Dtype::f32 ? 4 : 2;
  const bool aligned =
      reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride * bytes % 16 == 0;
  return aligned ? width : width + kChunk - 1;
}

// run(Shape) for the smallest that holds a row.
template <class Run>
cudaError_t with_shape(int64_t padded_width, const Run& run) {
  if (padded_width <= Shape<32, 1>::kWidth) return run(Shape<32, 1>{});
  if (padded_width <= Shape<32, 2>::kWidth) return run(Shape<32, 2>{});
  if (padded_width <= Shape<32, 4>::kWidth) return run(Shape<32, 4>{});
  if (padded_width <= Shape<128, 4>::kWidth) return run(Shape<128, 4>{});
  if (padded_width <= Shape<512, 4>::kWidth) return run(Shape<512, 4>{});
  return cudaErrorInvalidValue;
}

template <class T>
struct Type {
  using type = T;
};

// run(Type) for a row's element type.
template <class Run>
cudaError_t with_type(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::f32: return run(Type<float>{});
    case Dtype::bf16: return run(Type<__nv_bfloat16>{});
    case Dtype::f16: return run(Type<__half>{});
    default: return cudaErrorInvalidValue;
  }
}

// Blocks for `items` items of `each` a block: kernels walk over what is left, so that no number of
// rows is too large.
inline unsigned blocks_for(int64_t items, int64_t each) {
  return static_cast<unsigned>(std::min<int64_t>((items + each - 1) / each, 1 << 30));
}

}  // namespace acn::cuda
