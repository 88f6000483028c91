#include "native_segment.h"

#include <ATen/ops/add.h>
#include <ATen/ops/lerp.h>
#include <ATen/ops/relu.h>

#include <optional>

#include "attention.h"
#include "device.h"
#include "pieces.h"

namespace acn {
namespace {

using at::Tensor;

// x [B, T, D] as rows [B T, D].
Tensor rows_of(const Tensor& x) { return x.reshape({-1, x.size(-1)}); }

// body(rows, begin) on the rows of x: what a map over the last axis alone needs. In fp32 its
// products share out the threads themselves.
template <class Body>
Tensor over_rows(const Tensor& x, const Body& body) {
  const Tensor rows = rows_of(x);
  const Tensor out = x.scalar_type() == at::kFloat ? body(rows, 0)
                                                   : in_pieces(rows, 0, kLeastOfProduct, body);
  return out.view(x.sizes());
}

// The input u of a layer, of the latest output x and the sum y that holds it, in x's dtype.
Tensor layer_input(const Tensor& x, const Tensor& y, double alpha) {
  if (alpha == 1) return x;
  const Tensor u = alpha == 0 ? y : at::lerp(y, x.to(at::kFloat), alpha);
  return u.to(x.scalar_type());
}

class TransformerBlock final : public Block {
 public:
  TransformerBlock(const Tensors& weights, const std::string& at, const Config& config)
      : Block(norm_at(weights, at + "norm1"), config.alpha),
        attention_(weights, at + "attn", config.heads),
        norm2_(norm_at(weights, at + "norm2")),
        mlp_{linear_at(weights, at + "mlp.fc1"), linear_at(weights, at + "mlp.fc2")} {}

  Tensor run(Tensor h, const Tensor& u, bool first_row) const override {
    const Tensor mixed = attention_.mixed(h, {}, first_row);
    const Tensor u_rows = rows_of(first_row ? u.narrow(1, 0, 1) : u);
    return over_rows(mixed, [&](const Tensor& rows, int64_t begin) {
      return within(attention_.proj()(rows), u_rows.narrow(0, begin, rows.size(0)), norm2_, mlp_);
    });
  }

 private:
  SelfAttention attention_;
  LayerNorm norm2_;
  Mlp mlp_;
};

class MixerBlock final : public Block {
 public:
  MixerBlock(const Tensors& weights, const std::string& at, const Config& config)
      : Block(norm_at(weights, at + "norm1"), config.alpha),
        token_mlp_{linear_at(weights, at + "token_mlp.fc1"),
                   linear_at(weights, at + "token_mlp.fc2")},
        norm2_(norm_at(weights, at + "norm2")),
        channel_mlp_{linear_at(weights, at + "channel_mlp.fc1"),
                     linear_at(weights, at + "channel_mlp.fc2")} {
    if (!config.closing) return;
    closing_ = linear_at(weights, at + "closing");
    norm3_ = norm_at(weights, at + "norm3");
  }

  Tensor run(Tensor h, const Tensor& u, bool) const override {
    const bool on_device = !h.is_cpu();  // where alpha is 1
    h = token_mlp_.over_tokens(std::move(h));
    if (on_device) device::bias_norm(h, token_mlp_.fc2.bias, norm2_);
    const Tensor all_u = rows_of(u);
    return over_rows(h, [&](const Tensor& rows, int64_t begin) {
      const Tensor u_rows = all_u.narrow(0, begin, rows.size(0));
      Tensor out = on_device ? channel_mlp_(rows) : within(rows, u_rows, norm2_, channel_mlp_);
      if (!closing_) return out;
      Tensor closed = (*closing_)(out).add_(u_rows);
      return norm(at::relu_(closed), norm3_);
    });
  }

 private:
  Mlp token_mlp_;
  LayerNorm norm2_;
  Mlp channel_mlp_;
  std::optional<Linear> closing_;
  LayerNorm norm3_;
};

}  // namespace

Tensor Block::within(const Tensor& h, const Tensor& u, const LayerNorm& norm2,
                     const Mlp& mlp) const {
  if (around_ == 0) return mlp(h, &norm2);
  return mlp(at::add(h, u, around_), &norm2).add_(h, around_);
}

LayerNorm norm_at(const Tensors& weights, const std::string& name) {
  return {weights.at(name + ".weight"), weights.at(name + ".bias")};
}

Blocks blocks_of(const Config& config, const Tensors& weights) {
  Blocks blocks;
  for (int64_t i = 0; i < config.depth; ++i) {
    const std::string at = "blocks." + std::to_string(i) + ".";
    if (config.family == Family::vit) {
      blocks.push_back(std::make_shared<TransformerBlock>(weights, at, config));
    } else {
      blocks.push_back(std::make_shared<MixerBlock>(weights, at, config));
    }
  }
  return blocks;
}

State NativeSegment::run(State state, bool closing) const {
  for (int64_t i = begin_; i < end_; ++i) {
    const Block& block = *blocks_[static_cast<size_t>(i)];
    const bool last = closing && first_row_ && i == end_ - 1;
    // At other alphas the layers read all of y.
    const bool first_sum = first_row_ && alpha_ == 1;
    Tensor h = accumulate_norm(state.x, state.y, first_sum, block.entry(), alpha_);
    const Tensor u = layer_input(state.x, state.y, alpha_);
    state.x = block.run(std::move(h), u, last).contiguous();
  }
  return state;
}

}  // namespace acn
