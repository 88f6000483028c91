#include "acn/product.h"

#include <algorithm>
#include <array>
#include <utility>

#include "acn/gelu.h"

namespace acn {
namespace {

// As many sums as the registers hold beside two vectors of B and one factor.
#if defined(__x86_64__)
#define ACN_TILE_WIDER
namespace avx512 {
#define ACN_TILE_TARGET __attribute__((target("avx512f,fma")))
#define ACN_TILE_LANES 16
#define ACN_TILE_ROWS 14
#include "product_tile.h"
}  // namespace avx512

namespace avx2 {
#define ACN_TILE_TARGET __attribute__((target("avx2,fma")))
#define ACN_TILE_LANES 8
#define ACN_TILE_ROWS 6
#include "product_tile.h"
}  // namespace avx2
#endif

// Four lanes are what every x86-64 and Arm has.
namespace baseline {
#define ACN_TILE_TARGET
#define ACN_TILE_LANES 4
#define ACN_TILE_ROWS 6
#include "product_tile.h"
}  // namespace baseline

constexpr int64_t kDepthOfBlock = 256;         // of B: two vectors wide, the L1 cache holds it
constexpr int64_t kElementsOfBlock = 1 << 18;  // of A: the L2 cache holds them beside B
constexpr int64_t kMostRows = 128;
constexpr int64_t kSumsPerPiece = 1 << 18;  // multiply-adds for which a thread is worth waking

int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

const std::vector<Tiles>& tiles_here() {
  static const std::vector<Tiles> found = [] {
    std::vector<Tiles> all;
#if defined(ACN_TILE_WIDER)
    if (__builtin_cpu_supports("avx512f")) all.push_back(avx512::tiles("avx512"));
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      all.push_back(avx2::tiles("avx2"));
    }
#endif
    all.push_back(baseline::tiles("baseline"));
    return all;
  }();
  return found;
}

void multiply_panel(const Tiles& tiles, const Tile& whole, int64_t rows, int64_t columns) {
  if (columns < tiles.columns) {
    // In a panel of its own, of which what is asked for is copied.
    const Scratch<float> wide(rows + 1, tiles.columns);
    Tile inside = whole;
    inside.c = wide.row(0);
    inside.ldc = wide.pitch();
    if (whole.column_bias) {
      std::copy_n(whole.column_bias, columns, wide.row(rows));
      std::fill(wide.row(rows) + columns, wide.row(rows) + tiles.columns, 0.0f);
      inside.column_bias = wide.row(rows);
    }
    for (int64_t r = 0; whole.add && r < rows; ++r) {
      std::copy_n(whole.c + r * whole.ldc, columns, wide.row(r));
      std::fill(wide.row(r) + columns, wide.row(r) + tiles.columns, 0.0f);
    }
    multiply_panel(tiles, inside, rows, tiles.columns);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(wide.row(r), columns, whole.c + r * whole.ldc);
    }
    return;
  }
  const int64_t count = quotient_up(rows, tiles.rows);
  int64_t from = 0;
  do {
    const int64_t depth = std::min(kDepthOfBlock, whole.depth - from);
    const bool last = from + depth == whole.depth;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = i * rows / count, end = (i + 1) * rows / count;
      Tile tile = whole;
      tile.a += row * whole.lda + from;
      tile.b += from * whole.ldb;
      tile.c += row * whole.ldc;
      tile.depth = depth;
      if (i > 0) {
        tile.next = nullptr;  // on its way
      } else if (!last) {
        tile.next = tile.b + depth * whole.ldb;
      }
      if (whole.row_bias) tile.row_bias += row;
      tile.add = whole.add || from > 0;
      tile.gelu = whole.gelu && last;
      tiles.run[end - row - 1](tile);
    }
    from += depth;
  } while (from < whole.depth);
}

Panels::Panels(const float* weight, int64_t outputs, int64_t inputs, const Tiles& tiles)
    : tiles_(tiles),
      outputs_(outputs),
      inputs_(inputs),
      data_(quotient_up(outputs, tiles.columns), inputs * tiles.columns) {
  const int64_t width = tiles.columns;
  for (int64_t i = 0; i < count(); ++i) {
    const float* const from = weight + i * width * inputs;
    float* to = data_.row(i);
    const int64_t here = columns(i);
    for (int64_t k = 0; k < inputs; ++k, to += width) {
      for (int64_t n = 0; n < here; ++n) to[n] = from[n * inputs + k];
      std::fill(to + here, to + width, 0.0f);
    }
  }
}

int64_t Panels::columns(int64_t i) const {
  return std::min(tiles_.columns, outputs_ - i * tiles_.columns);
}

Tile Panels::tile(int64_t i) const {
  Tile tile;
  tile.b = data_.row(i);
  tile.ldb = tiles_.columns;
  tile.depth = inputs_;
  return tile;
}

void product(const Product& args, const ParallelFor& parallel) {
  const Panels& weight = *args.weight;
  if (args.rows == 0 || weight.outputs() == 0) return;
  const int64_t fitting = kElementsOfBlock / std::max<int64_t>(1, weight.inputs());
  const int64_t most = std::clamp(fitting, 2 * weight.tiles().rows, kMostRows);
  const int64_t blocks = quotient_up(args.rows, most), panels = weight.count();
  const int64_t sums = quotient_up(args.rows, blocks) * weight.inputs() * weight.tiles().columns;
  parallel(blocks * panels, quotient_up(kSumsPerPiece, sums + 1), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t block = unit / panels, panel = unit % panels;
      const int64_t row = block * args.rows / blocks, next = (block + 1) * args.rows / blocks;
      const int64_t output = panel * weight.tiles().columns;
      Tile tile = weight.tile(panel);
      // With few rows a layer's weights would not come from the L2 cache in time.
      if (unit + 1 < end && panel + 1 < panels) tile.next = weight.tile(panel + 1).b;
      tile.a = args.x + row * args.stride;
      tile.lda = args.stride;
      tile.c = args.out + row * weight.outputs() + output;
      tile.ldc = weight.outputs();
      if (args.bias) tile.column_bias = args.bias + output;
      tile.gelu = args.gelu;
      multiply_panel(weight.tiles(), tile, next - row, weight.columns(panel));
    }
  });
}

}  // namespace acn
