// What every row-wise kernel is told about its tensors: pointers, sizes and strides, nothing else.
#pragma once

#include <cstdint>
#include <functional>

namespace acn {

enum class Dtype { f32, f64, bf16, f16 };
enum class Norm { none, layer, rms };

// Input [N, D]: row r starts r * stride elements after data, and its D elements are adjacent.
struct Rows {
  const void* data = nullptr;
  int64_t stride = 0;
  Dtype dtype = Dtype::f32;
};

// Output [N, D] without gaps.
struct OutRows {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
};

// Places of the rows of [..., tokens, D] in a tensor [..., kept, D] that holds some of them.
struct RowMap {
  const int32_t* place = nullptr;  // [tokens], -1 where the row is not held; null: all rows are
  int64_t tokens = 1;
  int64_t kept = 1;

  int64_t operator()(int64_t row) const {
    if (!place) return row;
    const int32_t at = place[row % tokens];
    return at < 0 ? -1 : row / tokens * kept + at;
  }
};

// Weight and bias [D] of a norm in the precision W of its sums; null: one and zero.
template <class W>
struct Affine {
  const W* weight = nullptr;
  const W* bias = nullptr;
};

// Calls body(begin, end) on pieces that cover [0, count), each of at least `grain` where it can,
// on whatever threads the caller owns. Must return after the last piece.
using RangeBody = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = std::function<void(int64_t count, int64_t grain, const RangeBody& body)>;

}  // namespace acn
