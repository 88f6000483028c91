// Self-attention of the package's own blocks, on ATen's scaled_dot_product_attention.
#pragma once

#include <vector>

#include "linear.h"

namespace acn {

class SelfAttention {
 public:
  // Of the weights `at`.qkv and `at`.proj.
  SelfAttention(const Tensors& weights, const std::string& at, int64_t heads);

  // What the heads make of x [B, T, D], side by side and without gaps, before `proj`: [B, T, D], or
  // [B, 1, D] where the first token alone asks, over the keys of all. `mask` [B, 1, 1, T] is true
  // where a token is read; undefined: everywhere.
  at::Tensor mixed(const at::Tensor& x, const at::Tensor& mask, bool first_row) const;

  const Linear& proj() const { return proj_; }

 private:
  std::vector<at::Tensor> heads(const at::Tensor& x, int64_t count) const;
  std::vector<at::Tensor> heads_of_first(const at::Tensor& x) const;

  int64_t heads_;
  Linear qkv_;
  Linear proj_;
};

}  // namespace acn
