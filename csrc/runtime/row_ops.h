// The row-wise operations on tensors of fp32 and bf16 rows, with sums in fp32: this package's
// kernels on the CPU, those of the device elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

#include "acn/rows.h"

namespace acn {

void parallel_for(int64_t count, int64_t grain, const RangeBody& body);

struct LayerNorm {
  static constexpr float kEps = 1e-5f;
  at::Tensor weight;
  at::Tensor bias;
};

// norm(x) in x's dtype.
at::Tensor norm(const at::Tensor& x, const LayerNorm& norm);

// Adds x to y, or starts the sum where y is undefined, and returns norm(alpha x + (1 - alpha) y) in
// x's dtype; x is [B, T, D], y fp32 the same, or at alpha 1 [B, 1, D] with `first_row`: of each
// sample's first token alone. On devices other than the CPU alpha is 1.
at::Tensor accumulate_norm(const at::Tensor& x, at::Tensor& y, bool first_row,
                           const LayerNorm& norm, double alpha);

// gelu(x + bias) in place of x [..., D]; an undefined bias is none.
void bias_gelu(at::Tensor& x, const at::Tensor& bias);

// [B, D] in x's dtype: the mean over the tokens of norm(y + x), or the first of them, of which
// alone y and x may consist. On the CPU: an exit on a device is ExitOps::decide.
at::Tensor exit_pool(const at::Tensor& x, const at::Tensor& y, bool first_row,
                     const LayerNorm& norm);

}  // namespace acn
