// bias_gelu: the bias and the exact GELU behind a product, in place and in one pass.
#pragma once

#include "acn/rows.h"

namespace acn {

struct BiasGelu {
  int64_t rows = 0;
  int64_t width = 0;
  OutRows x;
  const float* bias = nullptr;  // [D]; null: none
};

// x = gelu(x + bias), computed in fp32
void bias_gelu(const BiasGelu& args, const ParallelFor& parallel);

}  // namespace acn
