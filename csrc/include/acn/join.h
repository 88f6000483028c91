// join: the long sum of all layers' outputs, with the final norm, in one read of each.
// Sums, statistics and parameters have precision W: float, or double for double rows.
#pragma once

#include <vector>

#include "acn/rows.h"

namespace acn {

template <class W>
struct Join {
  int64_t rows = 0;
  int64_t width = 0;
  std::vector<Rows> xs;
  const W* scales = nullptr;  // one per source; null: all one
  W* y = nullptr;             // [N, D] where there is a norm: the sum, which its backward reads
  OutRows out;
  W* mean = nullptr;  // [N], layer only
  W* rstd = nullptr;  // [N] where there is a norm
  Affine<W> affine;
  W eps = 0;
  Norm norm = Norm::none;
};

// out = norm(y) with y = sum_i scales_i * xs_i, added in that order
template <class W>
void join(const Join<W>& args, const ParallelFor& parallel);

}  // namespace acn
