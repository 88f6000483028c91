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
ACN_INLINE void scale(W* x, W factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

template <class W>
ACN_INLINE void pool_samples(const ExitPool<W>& args, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  const Scratch<W> scratch(5, width);
  const Affine<W> affine = completed(args.affine, width, scratch.row(0), scratch.row(1));
  W* sum = scratch.row(3);
  W* normed = scratch.row(4);
  for (int64_t sample = begin; sample < end; ++sample) {
    W* pooled = args.pooled + sample * width;
    fill(pooled, W(0), width);
    for (int64_t token = 0; token < args.tokens; ++token) {
      const W* u = load(args.x, sample * args.tokens_of_x + token, width, scratch.row(2));
      if (args.y) {
        add(u, args.y + (sample * args.tokens + token) * width, sum, width);
        u = sum;
      }
      if (args.norm != Norm::none) {
        normalise(u, normed, width, moments(u, width, args.norm, args.eps), affine);
        u = normed;
      }
      add(u, pooled, pooled, width);
    }
    scale(pooled, W(1) / static_cast<W>(args.tokens), width);
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
