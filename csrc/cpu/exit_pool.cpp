#include "acn/exit_pool.h"

#include <algorithm>

#include "acn/row_math.h"

namespace acn {
namespace {

template <class W>
ACN_INLINE void add(const W* x, const W* y, W* u, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) u[i] = y[i] + x[i];
}

template <class W>
ACN_INLINE void add_standardised(const W* u, Moments<W> m, W* total, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) total[i] += (u[i] - m.mean) * m.rstd;
}

// The norm's weight and bias are the same for all tokens: they wait for the mean.
template <class W>
ACN_INLINE void finish(W* total, W share, const Affine<W>& affine, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) total[i] = total[i] * share * affine.weight[i] + affine.bias[i];
}

template <class W>
ACN_INLINE void pool_samples(const ExitPool<W>& args, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  const Scratch<W> scratch(4, width);
  const bool normed = args.norm != Norm::none;
  const Affine<W> affine =
      completed(normed ? args.affine : Affine<W>(), width, scratch.row(0), scratch.row(1));
  for (int64_t sample = begin; sample < end; ++sample) {
    W* pooled = args.pooled + sample * width;
    fill(pooled, W(0), width);
    for (int64_t token = 0; token < args.tokens; ++token) {
      const W* u = load(args.x, sample * args.tokens_of_x + token, width, scratch.row(2));
      if (args.y) {
        add(u, args.y + (sample * args.tokens + token) * width, scratch.row(3), width);
        u = scratch.row(3);
      }
      if (normed) {
        add_standardised(u, moments(u, width, args.norm, args.eps), pooled, width);
      } else {
        add(u, pooled, pooled, width);
      }
    }
    finish(pooled, W(1) / static_cast<W>(args.tokens), affine, width);
  }
}

ACN_CLONES void pool_cloned(const ExitPool<float>& args, int64_t begin, int64_t end) {
  pool_samples(args, begin, end);
}

ACN_CLONES void pool_cloned(const ExitPool<double>& args, int64_t begin, int64_t end) {
  pool_samples(args, begin, end);
}

}  // namespace

template <class W>
void exit_pool(const ExitPool<W>& args, const ParallelFor& parallel) {
  const int64_t rows = rows_per_piece(args.width);
  parallel(args.samples, std::max<int64_t>(1, rows / std::max<int64_t>(1, args.tokens)),
           [&](int64_t begin, int64_t end) { pool_cloned(args, begin, end); });
}

template void exit_pool(const ExitPool<float>&, const ParallelFor&);
template void exit_pool(const ExitPool<double>&, const ParallelFor&);

}  // namespace acn
