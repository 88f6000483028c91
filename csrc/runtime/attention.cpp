#include "attention.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <optional>

namespace acn {

using at::Tensor;

SelfAttention::SelfAttention(const Tensors& weights, const std::string& at, int64_t heads)
    : heads_(heads),
      qkv_(linear_at(weights, at + ".qkv")),
      proj_(linear_at(weights, at + ".proj")) {}

Tensor SelfAttention::mixed(const Tensor& x, const Tensor& mask, bool first_row) const {
  const std::vector<Tensor> qkv = first_row ? heads_of_first(x) : heads(qkv_(x), 3);
  const auto where = mask.defined() ? std::optional<Tensor>(mask) : std::nullopt;
  const Tensor out = at::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], where);
  return out.transpose(1, 2).flatten(2).contiguous();
}

// `count` tensors [B, heads, T, D / heads] that lie beside each other in x.
std::vector<Tensor> SelfAttention::heads(const Tensor& x, int64_t count) const {
  std::vector<Tensor> parts;
  for (const Tensor& part : x.unflatten(-1, {count, heads_, -1}).unbind(2)) {
    parts.push_back(part.transpose(1, 2));
  }
  return parts;
}

// The first token's query, and the keys and values of all.
std::vector<Tensor> SelfAttention::heads_of_first(const Tensor& x) const {
  const int64_t width = x.size(2);
  const auto part = [&](const Tensor& of, int64_t from, int64_t to, int64_t count) {
    return heads(at::linear(of, qkv_.weight.slice(0, from, to), qkv_.bias.slice(0, from, to)),
                 count);
  };
  const std::vector<Tensor> rest = part(x, width, 3 * width, 2);
  return {part(x.narrow(1, 0, 1), 0, width, 1)[0], rest[0], rest[1]};
}

}  // namespace acn
