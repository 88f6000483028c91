// Linear layers and the MLP of two: fp32 on packed weights, all else on ATen's products.
#pragma once

#include "acn/runtime/weights.h"
#include "packed_weight.h"
#include "row_ops.h"

namespace acn {

struct Linear {
  Linear(at::Tensor weight, at::Tensor bias);

  at::Tensor operator()(const at::Tensor& x) const;

  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out]
  std::shared_ptr<const PackedWeight> packed;  // null: the product is ATen's
};

Linear linear_at(const Tensors& weights, const std::string& name);

// What it is given is its own: the result may come to lie there.
struct Mlp {
  Linear fc1;
  Linear fc2;

  // Of the rows of x [..., D], or of norm(x).
  at::Tensor operator()(at::Tensor x, const LayerNorm* norm = nullptr) const;

  // Of the columns of each x[b], x [B, T, D]: along the token axis. On devices other than the CPU
  // without the bias of fc2, which goes with the norm that comes next (device::bias_norm).
  at::Tensor over_tokens(at::Tensor x) const;
};

}  // namespace acn
