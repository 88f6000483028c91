// Products of fp32 matrices, with a weight that was laid out for them once.
//
// Every element of a product is summed over k in rising order, by fused multiply-adds where the
// processor has them: it does not depend on how many rows there are or which thread computes it.
#pragma once

#include <cstdint>
#include <vector>

#include "acn/row_math.h"
#include "acn/rows.h"

namespace acn {

// What a tile computes: C = A B + bias, or C += A B, and the exact GELU of that.
struct Tile {
  const float* a = nullptr;  // [rows, depth], rows `lda` apart
  int64_t lda = 0;
  const float* b = nullptr;  // [depth, columns], rows `ldb` apart
  int64_t ldb = 0;
  const float* next = nullptr;  // another B, wanted soon: the caches load it; null: there is none
  float* c = nullptr;  // [rows, columns], rows `ldc` apart
  int64_t ldc = 0;
  int64_t depth = 0;
  const float* row_bias = nullptr;     // [rows]; null: none
  const float* column_bias = nullptr;  // [columns]; null: none
  bool add = false;                    // to what C holds; there is no bias then
  bool gelu = false;
};

// Tiles in one instruction set: of 1 to `rows` rows and always `columns` columns.
struct Tiles {
  const char* name;
  int64_t rows;
  int64_t columns;
  void (*const* run)(const Tile&);  // [rows]: run[i] computes i + 1 rows
};

// What this machine runs, the fastest first.
const std::vector<Tiles>& tiles_here();

// `columns` columns of a product, at most a panel's, of any number of rows and any depth. B is a
// whole panel even where fewer columns are asked for; nothing is written besides those.
void multiply_panel(const Tiles& tiles, const Tile& whole, int64_t rows, int64_t columns);

// The transpose of a weight [outputs, inputs] as panels [inputs, columns of a tile], the last one
// filled up with zeros.
class Panels {
 public:
  Panels(const float* weight, int64_t outputs, int64_t inputs, const Tiles& tiles);

  const Tiles& tiles() const { return tiles_; }
  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  int64_t count() const { return (outputs_ + tiles_.columns - 1) / tiles_.columns; }
  float operator()(int64_t output, int64_t input) const {
    return data_.row(output / tiles_.columns)[input * tiles_.columns + output % tiles_.columns];
  }

  // Outputs of panel i, and the product that computes them from rows of A.
  int64_t columns(int64_t i) const;
  Tile tile(int64_t i) const;

 private:
  Tiles tiles_;
  int64_t outputs_;
  int64_t inputs_;
  Scratch<float> data_;
};

struct Product {
  int64_t rows = 0;
  const float* x = nullptr;  // [N, inputs], rows `stride` apart
  int64_t stride = 0;
  const Panels* weight = nullptr;
  const float* bias = nullptr;  // [outputs]; null: none
  float* out = nullptr;         // [N, outputs] without gaps
  bool gelu = false;
};

// out = x weight^T + bias, or the GELU of that; few rows are shared out by outputs.
void product(const Product& args, const ParallelFor& parallel);

}  // namespace acn
