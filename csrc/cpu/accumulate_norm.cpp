#include "acn/accumulate_norm.h"

#include "acn/row_math.h"

namespace acn {
namespace {

// y (+)= scale * x
template <bool kFirst, class W>
ACN_INLINE void accumulate(const W* x, W* y, W scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = kFirst ? scale * x[i] : y[i] + scale * x[i];
}

template <class W>
ACN_INLINE void mix(const W* x, const W* y, W* u, W alpha, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) u[i] = alpha * x[i] + (1 - alpha) * y[i];
}

template <class W>
ACN_INLINE void copy(const W* from, W* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

template <class W>
ACN_INLINE void accumulate_rows(const AccumulateNorm<W>& args, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  const Scratch<W> scratch(5, width);
  const Affine<W> affine = completed(args.affine, width, scratch.row(0), scratch.row(1));
  for (int64_t r = begin; r < end; ++r) {
    const W* x = load(args.x, r, width, scratch.row(2));
    const int64_t y_row = args.y_rows(r);
    W* y = y_row < 0 ? nullptr : args.y + y_row * width;
    if (y && args.first) {
      accumulate<true>(x, y, args.scale, width);
    } else if (y) {
      accumulate<false>(x, y, args.scale, width);
    }
    const W* u = x;
    if (args.alpha == 0) {
      u = y;
    } else if (args.alpha != 1) {
      mix(x, y, scratch.row(3), args.alpha, width);
      u = scratch.row(3);
    }
    W* h = target(args.h, r, width, scratch.row(4));
    if (args.norm == Norm::none) {
      copy(u, h, width);
    } else {
      normalise(u, h, width, moments(u, width, args.norm, args.eps), affine);
    }
    store(h, args.h, r, width, width);
  }
}

ACN_CLONES void accumulate_cloned(const AccumulateNorm<float>& args, int64_t begin, int64_t end) {
  accumulate_rows(args, begin, end);
}

ACN_CLONES void accumulate_cloned(const AccumulateNorm<double>& args, int64_t begin, int64_t end) {
  accumulate_rows(args, begin, end);
}

}  // namespace

template <class W>
void accumulate_norm(const AccumulateNorm<W>& args, const ParallelFor& parallel) {
  parallel(args.rows, rows_per_piece(args.width),
           [&](int64_t begin, int64_t end) { accumulate_cloned(args, begin, end); });
}

template void accumulate_norm(const AccumulateNorm<float>&, const ParallelFor&);
template void accumulate_norm(const AccumulateNorm<double>&, const ParallelFor&);

}  // namespace acn
