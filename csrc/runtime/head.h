// The last step to the logits of every sub-network.
#pragma once

#include <optional>

#include "linear.h"
#include "row_ops.h"

namespace acn {

struct Head {
  bool first_row;                 // is what is read; else the mean of all rows, normed
  std::optional<LayerNorm> norm;  // before that
  Linear linear;
};

}  // namespace acn
