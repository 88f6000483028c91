// bias_gelu: the bias and the exact GELU behind a product, in one pass.
#pragma once

#include "acn/rows.h"

namespace acn {

struct BiasGelu {
  int64_t rows = 0;
  int64_t width = 0;
  Rows z;
  OutRows h;                    // may lie where z does, where that has no gaps
  const float* bias = nullptr;  // [D]; null: none
};

// h = gelu(z + bias), computed in fp32
void bias_gelu(const BiasGelu& args, const ParallelFor& parallel);

}  // namespace acn
