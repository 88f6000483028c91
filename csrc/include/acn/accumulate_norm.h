// accumulate_norm: inference's step between two layers, in one pass.
// Sums, statistics and parameters have precision W: float, or double for double rows.
#pragma once

#include "acn/rows.h"

namespace acn {

template <class W>
struct AccumulateNorm {
  int64_t rows = 0;
  int64_t width = 0;
  Rows x;
  W* y = nullptr;  // the running sum, without gaps: [N, D], or the rows that y_rows names
  RowMap y_rows;   // with a map, alpha is 1
  bool first = false;  // y is written without being read
  W scale = 1;
  W alpha = 1;
  OutRows h;
  Affine<W> affine;
  W eps = 0;
  Norm norm = Norm::none;
};

// y += scale * x, h = norm(alpha * x + (1 - alpha) * y)
template <class W>
void accumulate_norm(const AccumulateNorm<W>& args, const ParallelFor& parallel);

}  // namespace acn
