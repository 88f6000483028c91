#include "acn/fork.h"

#include <algorithm>
#include <vector>

#include "acn/row_math.h"

namespace acn {
namespace {

// Narrow rows are converted a few at a time: one by one, the beginnings and ends of loops would
// take most of the time.
constexpr int64_t kElementsPerTile = 1024;

template <class W>
ACN_INLINE void forward_rows(const ForkForward<W>& args, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  const int64_t tile = rows_per_tile(args.x.stride == width, width, kElementsPerTile);
  const Scratch<W> scratch(4, tile * width);
  const Affine<W> affine = completed(args.affine, width, scratch.row(0), scratch.row(1));
  for (int64_t r = begin; r < end; r += tile) {
    const int64_t rows = std::min(tile, end - r);
    const W* x = load(args.x, r, rows * width, scratch.row(2));
    W* h = target(args.h, r, width, scratch.row(3));
    for (int64_t k = 0; k < rows; ++k) {
      const Moments<W> m = moments(x + k * width, width, args.norm, args.eps);
      if (args.mean) args.mean[r + k] = m.mean;
      args.rstd[r + k] = m.rstd;
      normalise(x + k * width, h + k * width, width, m, affine);
    }
    store(h, args.h, r, width, rows * width);
  }
}

// The sums over rows are kept per block of rows and added in the order of the blocks, which depend
// on the sizes alone: the result is the same on any number of threads.
constexpr int64_t kRowsPerBlock = 32;
constexpr int64_t kMostBlocks = 128;

struct Blocks {
  int64_t rows;  // per block, the last may have fewer
  int64_t count;
};

Blocks blocks_of(int64_t rows) {
  const int64_t each = std::max(kRowsPerBlock, (rows + kMostBlocks - 1) / kMostBlocks);
  return {each, (rows + each - 1) / each};
}

// Where a block leaves its share of the sums over rows.
template <class W>
struct Share {
  W* dweight;
  W* dbias;
  W* dscale;
};

// One row: sums first, as dx needs them; what they read is in the cache when dx reads it again.
template <bool kParameters, bool kDirect, class W>
ACN_INLINE void backward_row(const W* dh, const W* x, const W* g, W* dx, const W* weight, W scale,
                             Moments<W> m, bool centred, const Share<W>& share, int64_t n) {
  W along = 0;  // <dh * weight, normed>
  W total = 0;  // sum of dh * weight
  W* dweight = share.dweight;
  W* dbias = share.dbias;
#pragma omp simd reduction(+ : along, total)
  for (int64_t i = 0; i < n; ++i) {
    const W normed = (x[i] - m.mean) * m.rstd;
    if constexpr (kParameters) {
      dweight[i] += dh[i] * normed;
      dbias[i] += dh[i];
    }
    const W dnormed = dh[i] * weight[i];
    along += dnormed * normed;
    total += dnormed;
  }
  along /= static_cast<W>(n);
  total = centred ? total / static_cast<W>(n) : W(0);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const W normed = (x[i] - m.mean) * m.rstd;
    const W through_norm = (dh[i] * weight[i] - total - normed * along) * m.rstd;
    if constexpr (kDirect) {
      dx[i] = through_norm + scale * g[i];
    } else {
      dx[i] = through_norm;
    }
  }
}

template <class W, bool kParameters>
ACN_INLINE void backward_rows(const ForkBackward<W>& args, const Share<W>& share, int64_t begin,
                              int64_t end) {
  const int64_t width = args.width;
  const bool centred = args.norm == Norm::layer;
  const Scratch<W> scratch(6, width);
  const W* weight =
      completed<W>({args.weight, nullptr}, width, scratch.row(0), scratch.row(1)).weight;
  W dscale = 0;
  for (int64_t r = begin; r < end; ++r) {
    const W* dh = load(args.dh, r, width, scratch.row(2));
    const W* x = load(args.x, r, width, scratch.row(3));
    W* dx = target(args.dx, r, width, scratch.row(5));
    const Moments<W> m{centred ? args.mean[r] : W(0), args.rstd[r]};
    const int64_t g_row = args.g.data ? args.g_rows(r) : -1;
    if (g_row >= 0) {
      const W* g = load(args.g, g_row, width, scratch.row(4));
      if (args.dscale) dscale += dot(g, x, width);
      backward_row<kParameters, true>(dh, x, g, dx, weight, args.scale, m, centred, share, width);
    } else {
      backward_row<kParameters, false>(dh, x, dh, dx, weight, args.scale, m, centred, share,
                                       width);
    }
    store(dx, args.dx, r, width, width);
  }
  if (args.dscale) *share.dscale = dscale;
}

template <class W>
ACN_INLINE void backward_block(const ForkBackward<W>& args, const Share<W>& share, int64_t begin,
                               int64_t end) {
  if (share.dweight) {
    fill(share.dweight, W(0), args.width);
    fill(share.dbias, W(0), args.width);
    backward_rows<W, true>(args, share, begin, end);
  } else {
    backward_rows<W, false>(args, share, begin, end);
  }
}

template <class W>
ACN_INLINE void add(const W* from, W* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

ACN_CLONES void forward_cloned(const ForkForward<float>& args, int64_t begin, int64_t end) {
  forward_rows(args, begin, end);
}

ACN_CLONES void forward_cloned(const ForkForward<double>& args, int64_t begin, int64_t end) {
  forward_rows(args, begin, end);
}

ACN_CLONES void backward_cloned(const ForkBackward<float>& args, const Share<float>& share,
                                int64_t begin, int64_t end) {
  backward_block(args, share, begin, end);
}

ACN_CLONES void backward_cloned(const ForkBackward<double>& args, const Share<double>& share,
                                int64_t begin, int64_t end) {
  backward_block(args, share, begin, end);
}

}  // namespace

template <class W>
void fork_forward(const ForkForward<W>& args, const ParallelFor& parallel) {
  parallel(args.rows, rows_per_piece(args.width),
           [&](int64_t begin, int64_t end) { forward_cloned(args, begin, end); });
}

template <class W>
void fork_backward(const ForkBackward<W>& args, const ParallelFor& parallel) {
  const auto [block_rows, blocks] = blocks_of(args.rows);
  const bool parameters = args.dweight || args.dbias;
  const Scratch<W> shares(parameters ? 2 * blocks : 0, args.width);
  std::vector<W> dscales(args.dscale ? blocks : 0);
  const int64_t grain = std::max<int64_t>(1, rows_per_piece(args.width) / block_rows);
  parallel(blocks, grain, [&, block_rows = block_rows](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Share<W> share{parameters ? shares.row(2 * b) : nullptr,
                           parameters ? shares.row(2 * b + 1) : nullptr,
                           args.dscale ? &dscales[b] : nullptr};
      backward_cloned(args, share, b * block_rows, std::min(args.rows, (b + 1) * block_rows));
    }
  });
  for (W* sums : {args.dweight, args.dbias}) {
    if (!sums) continue;
    const int64_t offset = sums == args.dbias;
    std::fill_n(sums, args.width, W(0));
    for (int64_t b = 0; b < blocks; ++b) add(shares.row(2 * b + offset), sums, args.width);
  }
  if (args.dscale) {
    *args.dscale = 0;
    for (const W dscale : dscales) *args.dscale += dscale;
  }
}

template void fork_forward(const ForkForward<float>&, const ParallelFor&);
template void fork_forward(const ForkForward<double>&, const ParallelFor&);
template void fork_backward(const ForkBackward<float>&, const ParallelFor&);
template void fork_backward(const ForkBackward<double>&, const ParallelFor&);

}  // namespace acn
