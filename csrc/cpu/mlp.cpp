#include "acn/mlp.h"

#include <algorithm>

namespace acn {
namespace {

constexpr int64_t kRowsOfBlock = 128;       // whose hidden values stay in the cache
constexpr int64_t kSumsPerPiece = 1 << 18;  // multiply-adds for which a thread is worth waking

ACN_CLONES void norm_rows(const ChannelMlp& args, const float* x, float* h, int64_t rows) {
  const int64_t width = args.fc1->inputs();
  const Scratch<float> scratch(2, width);
  const Affine<float> affine = completed(args.affine, width, scratch.row(0), scratch.row(1));
  for (int64_t r = 0; r < rows; ++r, x += width, h += width) {
    normalise(x, h, width, moments(x, width, args.norm, args.eps), affine);
  }
}

// All panels of a product of some rows.
void multiply(const Panels& weight, const float* bias, bool gelu, const float* x, float* out,
              int64_t rows) {
  Product args;
  args.rows = rows;
  args.x = x;
  args.stride = weight.inputs();
  args.weight = &weight;
  args.bias = bias;
  args.out = out;
  args.gelu = gelu;
  product(args, [](int64_t count, int64_t, const RangeBody& body) { body(0, count); });
}

void mlp_rows(const ChannelMlp& args, int64_t begin, int64_t end) {
  const int64_t width = args.fc1->inputs(), hidden = args.fc1->outputs();
  const int64_t blocks = (end - begin + kRowsOfBlock - 1) / kRowsOfBlock;
  const int64_t rows = (end - begin + blocks - 1) / blocks;
  const Scratch<float> inside(1, rows * hidden);
  const Scratch<float> normed(1, args.norm == Norm::none ? 0 : rows * width);
  for (int64_t row = begin; row < end; row += rows) {
    const int64_t here = std::min(rows, end - row);
    const float* x = args.x + row * width;
    if (args.norm != Norm::none) {
      norm_rows(args, x, normed.row(0), here);
      x = normed.row(0);
    }
    multiply(*args.fc1, args.bias1, true, x, inside.row(0), here);
    multiply(*args.fc2, args.bias2, false, inside.row(0), args.out + row * args.fc2->outputs(),
             here);
  }
}

// A panel's columns of one sample; the hidden values are the panel of the second product.
void mlp_columns(const TokenMlp& args, const Tiles& tiles, int64_t sample, int64_t column,
                 const Scratch<float>& scratch) {
  const int64_t columns = std::min(tiles.columns, args.width - column);
  const int64_t at = sample * args.tokens * args.width + column;
  Tile first;
  first.a = args.weight1;
  first.lda = first.depth = args.tokens;
  first.b = args.x + at;
  first.ldb = args.width;
  if (columns < tiles.columns) {
    for (int64_t t = 0; t < args.tokens; ++t) {
      float* const row = scratch.row(args.hidden + t);
      std::copy_n(args.x + at + t * args.width, columns, row);
      std::fill(row + columns, row + tiles.columns, 0.0f);
    }
    first.b = scratch.row(args.hidden);
    first.ldb = scratch.pitch();
  }
  first.c = scratch.row(0);
  first.ldc = scratch.pitch();
  first.row_bias = args.bias1;
  first.gelu = true;
  multiply_panel(tiles, first, args.hidden, tiles.columns);
  Tile second;
  second.a = args.weight2;
  second.lda = second.depth = args.hidden;
  second.b = scratch.row(0);
  second.ldb = scratch.pitch();
  second.c = args.out + at;
  second.ldc = args.width;
  second.row_bias = args.bias2;
  multiply_panel(tiles, second, args.tokens, columns);
}

}  // namespace

void channel_mlp(const ChannelMlp& args, const ParallelFor& parallel) {
  const int64_t sums = (args.fc1->inputs() + args.fc2->outputs()) * args.fc1->outputs();
  const int64_t grain =
      std::max(args.fc1->tiles().rows, kSumsPerPiece / std::max<int64_t>(1, sums));
  parallel(args.rows, grain, [&](int64_t begin, int64_t end) { mlp_rows(args, begin, end); });
}

void token_mlp(const TokenMlp& args, const Tiles& tiles, const ParallelFor& parallel) {
  const int64_t panels = (args.width + tiles.columns - 1) / tiles.columns;
  const int64_t sums = 2 * args.tokens * args.hidden * tiles.columns;
  const int64_t grain = kSumsPerPiece / std::max<int64_t>(1, sums) + 1;
  parallel(args.samples * panels, grain, [&](int64_t begin, int64_t end) {
    const Scratch<float> scratch(args.hidden + args.tokens, tiles.columns);
    for (int64_t unit = begin; unit < end; ++unit) {
      mlp_columns(args, tiles, unit / panels, unit % panels * tiles.columns, scratch);
    }
  });
}

}  // namespace acn
