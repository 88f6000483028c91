// One row at a time, in the precision W of the sums: load, store, moments, norm.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "acn/half.h"
#include "acn/rows.h"
#include "acn/target.h"

namespace acn {

// Below this many elements a thread has less to do than it costs to wake it.
constexpr int64_t kElementsPerPiece = 16384;

inline int64_t rows_per_piece(int64_t width) {
  return width < kElementsPerPiece ? kElementsPerPiece / width : 1;
}

// Rows to treat as one run of about `elements`, where no gaps lie between them.
inline int64_t rows_per_tile(bool packed, int64_t width, int64_t elements) {
  return packed && width < elements ? elements / width : 1;
}

// Working memory for a few rows of `width`, each starting on a cache line; not initialised.
template <class W>
class Scratch {
 public:
  Scratch(int64_t rows, int64_t width) : pitch_((width + kLine - 1) / kLine * kLine) {
    data_.reset(static_cast<W*>(
        ::operator new(sizeof(W) * static_cast<size_t>(rows * pitch_), kAlignment)));
  }

  W* row(int64_t r) const { return data_.get() + r * pitch_; }
  int64_t pitch() const { return pitch_; }  // elements from row to row

 private:
  static constexpr int64_t kLine = 64 / sizeof(W);
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(W* data) const { ::operator delete(data, kAlignment); }
  };
  int64_t pitch_;
  std::unique_ptr<W, Free> data_;
};

template <class T>
constexpr Dtype dtype_of();
template <>
constexpr Dtype dtype_of<float>() {
  return Dtype::f32;
}
template <>
constexpr Dtype dtype_of<double>() {
  return Dtype::f64;
}

template <class W>
ACN_INLINE void fill(W* to, W value, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

template <class T, class W>
ACN_INLINE void widen_all(const void* from, W* to, int64_t n) {
  const T* source = static_cast<const T*>(from);
  if constexpr (std::is_same_v<T, Fp16> && std::is_same_v<W, float>) {
    widen_row(source, to, n);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<W>(widen(source[i]));
  }
}

template <class T, class W>
ACN_INLINE void narrow_all(const W* from, void* to, int64_t n) {
  T* target = static_cast<T*>(to);
  if constexpr (std::is_same_v<T, Fp16> && std::is_same_v<W, float>) {
    narrow_row(from, target, n);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) target[i] = narrow<T>(from[i]);
  }
}

ACN_INLINE int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

// n elements from the start of row r as W: where they lie if they are W, else converted to scratch.
template <class W>
ACN_INLINE const W* load(const Rows& rows, int64_t r, int64_t n, W* scratch) {
  const char* from = static_cast<const char*>(rows.data) + r * rows.stride * bytes_of(rows.dtype);
  if (rows.dtype == dtype_of<W>()) return reinterpret_cast<const W*>(from);
  switch (rows.dtype) {
    case Dtype::f32: widen_all<float>(from, scratch, n); break;
    case Dtype::f64: widen_all<double>(from, scratch, n); break;
    case Dtype::bf16: widen_all<Bf16>(from, scratch, n); break;
    case Dtype::f16: widen_all<Fp16>(from, scratch, n); break;
  }
  return scratch;
}

// Where to compute row r of the output: in place if it is W, else in scratch. Ends with store().
template <class W>
ACN_INLINE W* target(const OutRows& out, int64_t r, int64_t width, W* scratch) {
  return out.dtype == dtype_of<W>() ? static_cast<W*>(out.data) + r * width : scratch;
}

// Rounds n computed elements into the output from row r on; nothing to do where they lie there.
template <class W>
ACN_INLINE void store(const W* from, const OutRows& out, int64_t r, int64_t width, int64_t n) {
  if (out.dtype == dtype_of<W>()) return;
  char* to = static_cast<char*>(out.data) + r * width * bytes_of(out.dtype);
  switch (out.dtype) {
    case Dtype::f32: narrow_all<float>(from, to, n); break;
    case Dtype::f64: narrow_all<double>(from, to, n); break;
    case Dtype::bf16: narrow_all<Bf16>(from, to, n); break;
    case Dtype::f16: narrow_all<Fp16>(from, to, n); break;
  }
}

template <class W>
ACN_INLINE W sum(const W* x, int64_t n) {
  W total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += x[i];
  return total;
}

template <class W>
ACN_INLINE W dot(const W* x, const W* y, int64_t n) {
  W total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += x[i] * y[i];
  return total;
}

template <class W>
struct Moments {
  W mean;  // 0 for RMSNorm, which does not centre
  W rstd;
};

// Two sweeps, as the row lies in the cache: no cancellation where the mean is large. The second one
// also finds by how much rounding left the mean off.
template <class W>
ACN_INLINE Moments<W> moments(const W* x, int64_t n, Norm norm, W eps) {
  const bool centred = norm == Norm::layer;
  const W count = static_cast<W>(n);
  const W rough = centred ? sum(x, n) / count : W(0);
  W off = 0;
  W squares = 0;
#pragma omp simd reduction(+ : off, squares)
  for (int64_t i = 0; i < n; ++i) {
    const W deviation = x[i] - rough;
    off += deviation;
    squares += deviation * deviation;
  }
  off = centred ? off / count : W(0);
  return {rough + off, W(1) / std::sqrt(squares / count - off * off + eps)};
}

// h = (x - mean) * rstd * weight + bias; h may be x.
template <class W>
ACN_INLINE void normalise(const W* x, W* h, int64_t n, Moments<W> m, const Affine<W>& affine) {
  const W* weight = affine.weight;
  const W* bias = affine.bias;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) h[i] = (x[i] - m.mean) * m.rstd * weight[i] + bias[i];
}

// `affine` with ones and zeros for what it lacks, so that there is one loop for every norm: a
// product with one is exact, and the vector of ones stays in the cache.
template <class W>
ACN_INLINE Affine<W> completed(const Affine<W>& affine, int64_t n, W* ones, W* zeros) {
  if (!affine.weight) fill(ones, W(1), n);
  if (!affine.bias) fill(zeros, W(0), n);
  return {affine.weight ? affine.weight : ones, affine.bias ? affine.bias : zeros};
}

}  // namespace acn
