#include "acn/join.h"

#include <algorithm>

#include "acn/row_math.h"

namespace acn {
namespace {

// The sum of a few rows at a time stays in the first-level cache while the sources stream by.
constexpr int64_t kElementsPerTile = 4096;
// Sources per sweep over that sum.
constexpr int64_t kSourcesPerSweep = 4;

// y (+)= a_0 x_0 + ... over kTerms sources, added from left to right.
template <bool kFirst, int kTerms, class W>
ACN_INLINE void add_terms(W* y, const W* const* xs, const W* scales, int64_t n) {
  const W* x0 = xs[0];
  const W* x1 = xs[kTerms > 1 ? 1 : 0];
  const W* x2 = xs[kTerms > 2 ? 2 : 0];
  const W* x3 = xs[kTerms > 3 ? 3 : 0];
  const W a0 = scales[0];
  const W a1 = scales[kTerms > 1 ? 1 : 0];
  const W a2 = scales[kTerms > 2 ? 2 : 0];
  const W a3 = scales[kTerms > 3 ? 3 : 0];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    W total = kFirst ? a0 * x0[i] : y[i] + a0 * x0[i];
    if constexpr (kTerms > 1) total += a1 * x1[i];
    if constexpr (kTerms > 2) total += a2 * x2[i];
    if constexpr (kTerms > 3) total += a3 * x3[i];
    y[i] = total;
  }
}

template <bool kFirst, class W>
ACN_INLINE void add_sweep(W* y, const W* const* xs, const W* scales, int64_t terms, int64_t n) {
  switch (terms) {
    case 1: add_terms<kFirst, 1>(y, xs, scales, n); break;
    case 2: add_terms<kFirst, 2>(y, xs, scales, n); break;
    case 3: add_terms<kFirst, 3>(y, xs, scales, n); break;
    default: add_terms<kFirst, 4>(y, xs, scales, n); break;
  }
}

// y = sum_i a_i x_i over n elements from row r of every source on.
template <class W>
ACN_INLINE void add_sources(const Join<W>& args, int64_t r, W* y, int64_t n,
                            const Scratch<W>& scratch) {
  const int64_t sources = static_cast<int64_t>(args.xs.size());
  for (int64_t first = 0; first < sources; first += kSourcesPerSweep) {
    const int64_t terms = std::min(kSourcesPerSweep, sources - first);
    const W* xs[kSourcesPerSweep];
    W scales[kSourcesPerSweep];
    for (int64_t k = 0; k < terms; ++k) {
      xs[k] = load(args.xs[first + k], r, n, scratch.row(k));
      scales[k] = args.scales ? args.scales[first + k] : W(1);
    }
    if (first == 0) {
      add_sweep<true>(y, xs, scales, terms, n);
    } else {
      add_sweep<false>(y, xs, scales, terms, n);
    }
  }
}

template <class W>
ACN_INLINE void join_rows(const Join<W>& args, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  bool packed = true;
  for (const Rows& x : args.xs) packed = packed && x.stride == width;
  const int64_t tile = rows_per_tile(packed, width, kElementsPerTile);
  const Scratch<W> scratch(kSourcesPerSweep, tile * width);
  const Scratch<W> own(4, tile * width);
  const Affine<W> affine = completed(args.affine, width, own.row(0), own.row(1));
  for (int64_t r = begin; r < end; r += tile) {
    const int64_t rows = std::min(tile, end - r);
    const int64_t n = rows * width;
    W* out = target(args.out, r, width, own.row(2));
    W* y = args.norm == Norm::none ? out : args.y + r * width;
    add_sources(args, r, y, n, scratch);
    if (args.norm != Norm::none) {
      for (int64_t k = 0; k < rows; ++k) {
        const Moments<W> m = moments(y + k * width, width, args.norm, args.eps);
        if (args.mean) args.mean[r + k] = m.mean;
        args.rstd[r + k] = m.rstd;
        normalise(y + k * width, out + k * width, width, m, affine);
      }
    }
    store(out, args.out, r, width, n);
  }
}

ACN_CLONES void join_cloned(const Join<float>& args, int64_t begin, int64_t end) {
  join_rows(args, begin, end);
}

ACN_CLONES void join_cloned(const Join<double>& args, int64_t begin, int64_t end) {
  join_rows(args, begin, end);
}

}  // namespace

template <class W>
void join(const Join<W>& args, const ParallelFor& parallel) {
  parallel(args.rows, rows_per_piece(args.width),
           [&](int64_t begin, int64_t end) { join_cloned(args, begin, end); });
}

template void join(const Join<float>&, const ParallelFor&);
template void join(const Join<double>&, const ParallelFor&);

}  // namespace acn
