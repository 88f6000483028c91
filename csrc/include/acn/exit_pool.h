// exit_pool: what the head reads at an exit, in one pass over the state that nothing is written to.
// Sums, statistics and parameters have precision W: float, or double for double rows.
#pragma once

#include "acn/rows.h"

namespace acn {

template <class W>
struct ExitPool {
  int64_t samples = 0;
  int64_t tokens = 0;  // that are pooled, the first ones of each sample
  int64_t width = 0;
  Rows x;                       // the latest term, rows of all samples behind each other
  int64_t tokens_of_x = 0;      // rows of x that a sample has
  const W* y = nullptr;         // [samples, tokens, D], the terms before x; null: there are none
  Affine<W> affine;
  W eps = 0;
  Norm norm = Norm::none;
  W* pooled = nullptr;          // [samples, D]
};

// pooled = mean over the tokens of norm(y + x)
template <class W>
void exit_pool(const ExitPool<W>& args, const ParallelFor& parallel);

}  // namespace acn
