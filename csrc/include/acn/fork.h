// fork: the norm of a layer's output for the next layer; its backward adds the direct gradient.
// Sums, statistics and parameters have precision W: float, or double for double rows.
#pragma once

#include "acn/rows.h"

namespace acn {

template <class W>
struct ForkForward {
  int64_t rows = 0;
  int64_t width = 0;
  Rows x;
  OutRows h;
  W* mean = nullptr;  // [N], layer only
  W* rstd = nullptr;  // [N]
  Affine<W> affine;
  W eps = 0;
  Norm norm = Norm::layer;
};

// h = norm(x)
template <class W>
void fork_forward(const ForkForward<W>& args, const ParallelFor& parallel);

template <class W>
struct ForkBackward {
  int64_t rows = 0;
  int64_t width = 0;
  Rows dh;
  Rows x;
  Rows g;  // the direct gradient; data is null where there is none
  RowMap g_rows;
  W scale = 1;
  OutRows dx;
  const W* weight = nullptr;  // [D]
  const W* mean = nullptr;    // [N], layer only
  const W* rstd = nullptr;    // [N]
  W* dweight = nullptr;       // [D] where wanted
  W* dbias = nullptr;         // [D] where wanted
  W* dscale = nullptr;        // one number where wanted
  Norm norm = Norm::layer;
};

// dx = normbwd(dh) + scale * g, dweight and dbias of the norm, dscale = <g, x>. The sums over rows
// do not depend on the number of threads.
template <class W>
void fork_backward(const ForkBackward<W>& args, const ParallelFor& parallel);

}  // namespace acn
