// BERT's post-norm blocks on ATen's operations, with a classifier on the first token of the sum.
#include <ATen/ops/add.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "acn/runtime/errors.h"
#include "attention.h"
#include "bucket.h"
#include "device.h"
#include "head.h"
#include "model.h"
#include "native_segment.h"

namespace acn {
namespace {

using at::Tensor;

constexpr double kEps = 1e-12;

Tensor normed(const Tensor& x, const LayerNorm& norm) {
  if (!x.is_cpu()) return device::norm(x, norm, kEps);
  return at::layer_norm(x, {x.size(-1)}, norm.weight, norm.bias, kEps);
}

class PostNormBlock {
 public:
  PostNormBlock(const Tensors& weights, const std::string& at, const Config& config)
      : around_(1 - config.alpha),
        attention_(weights, at + "attn", config.heads),
        norm1_(norm_at(weights, at + "norm1")),
        mlp_{linear_at(weights, at + "mlp.fc1"), linear_at(weights, at + "mlp.fc2")},
        norm2_(norm_at(weights, at + "norm2")) {}

  // h = norm1(attention(x) + (1 - alpha) x), norm2(mlp(h) + (1 - alpha) h): [B, T, D], or
  // [B, 1, D] where the first token alone asks.
  Tensor run(const Tensor& x, const Tensor& mask, bool first_row) const {
    const Tensor mixed = attention_.mixed(x, mask, first_row);
    const Tensor asking = first_row ? x.narrow(1, 0, 1) : x;
    const Tensor h = normed(plus(attention_.proj()(mixed), asking), norm1_);
    const Tensor given = around_ == 0 ? h : h.clone();  // the MLP may write where its input lies
    return normed(plus(mlp_(given), h), norm2_);
  }

 private:
  // What goes around a half added to its output.
  Tensor plus(const Tensor& out, const Tensor& in) const {
    return around_ == 0 ? out : at::add(out, in, around_);
  }

  double around_;
  SelfAttention attention_;
  LayerNorm norm1_;
  Mlp mlp_;
  LayerNorm norm2_;
};

using PostNormBlocks = std::vector<PostNormBlock>;

class TextSegment final : public Segment {
 public:
  TextSegment(const PostNormBlocks& blocks, int64_t begin, int64_t end, double alpha)
      : blocks_(blocks), begin_(begin), end_(end), alpha_(alpha) {}

  State run(State state, bool closing) const override {
    for (int64_t i = begin_; i < end_; ++i) {
      const Tensor term = state.x.narrow(1, 0, 1);  // the head reads no other row
      if (state.y.defined()) {
        state.y.add_(term, alpha_);
      } else if (alpha_ != 0) {
        state.y = term.to(at::kFloat).mul(alpha_);
      }
      const PostNormBlock& block = blocks_[static_cast<size_t>(i)];
      state.x = block.run(state.x, state.mask, closing && i == end_ - 1).contiguous();
    }
    return state;
  }

 private:
  const PostNormBlocks& blocks_;
  int64_t begin_;
  int64_t end_;
  double alpha_;  // the scale of every term but the last
};

class TextModel final : public Model {
 public:
  TextModel(const Config& config, const Tensors& weights)
      : config_(config),
        words_(weights.at("bert.embeddings.word.weight")),
        positions_(weights.at("bert.embeddings.position.weight")),
        kinds_(weights.at("bert.embeddings.token_type.weight")),
        norm_(norm_at(weights, "bert.embeddings.norm")),
        pooler_(linear_at(weights, "bert.pooler")),
        head_{true, {}, linear_at(weights, "classifier")} {
    const std::array<int64_t, kRows> most{config.vocabulary - 1, 1, config.token_kinds - 1};
    most_ = at::tensor(most, at::kLong).view({kRows, 1});
    if (!words_.is_cpu()) most_ = most_.to(words_.device());
    for (int64_t i = 0; i < config.depth; ++i) {
      blocks_.emplace_back(weights, text("bert.blocks.", i, "."), config);
    }
  }

  void check(const Tensor& input) const override {
    if (input.dim() != 3 || input.size(1) < 2 || input.size(1) > 3 || input.size(2) < 1 ||
        input.size(2) > config_.positions) {
      throw std::invalid_argument(text(
          "tokens has shape ", input.sizes(), "; it takes [batch, 2 or 3, 1 to ",
          config_.positions, "]: words, mask and, if need be, kinds"));
    }
    if (input.device() != words_.device() || input.scalar_type() != at::kLong) {
      throw std::invalid_argument(text("tokens is ", input.scalar_type(), " on ", input.device(),
                                       "; it takes Long on ", words_.device()));
    }
    if (!input.is_cpu() || input.size(0) == 0) return;  // elsewhere the host would have to wait
    const std::array<const char*, kRows> names{"words", "mask", "kinds"};
    for (int64_t row = 0; row < input.size(1); ++row) {
      const auto [least, most] = at::aminmax(input.select(1, row));
      const int64_t end = most_.const_data_ptr<int64_t>()[row];
      for (const int64_t value : {least.item<int64_t>(), most.item<int64_t>()}) {
        if (value < 0 || value > end) {
          throw std::invalid_argument(text(names[static_cast<size_t>(row)], " holds ", value,
                                           "; it takes 0 to ", end));
        }
      }
    }
  }

  State embed(const Tensor& given) const override {
    const int64_t samples = given.size(0), tokens = given.size(2);
    const Tensor input = given.is_cpu() ? given : within_range(given);
    Tensor x = at::embedding(words_, input.select(1, 0));
    x.add_(input.size(1) == 3 ? at::embedding(kinds_, input.select(1, 2)) : kinds_.select(0, 0));
    x.add_(positions_.narrow(0, 0, tokens));
    State state;
    state.x = normed(x, norm_).contiguous();
    if (!given.is_cpu()) {
      const Tensor outside = input.ne(given).flatten(1).any(1);
      state.x.masked_fill_(outside.view({samples, 1, 1}), NAN);
    }
    state.mask = input.select(1, 1).ne(0).view({samples, 1, 1, tokens});
    return state;
  }

  std::shared_ptr<const Segment> segment(int64_t begin, int64_t end) const override {
    return std::make_shared<TextSegment>(blocks_, begin, end, config_.alpha);
  }

  Tensor logits(const State& state) const override {
    return head_.linear(read_by_head(state).x.select(1, 0));
  }

  const Head* head() const override { return &head_; }

  // [B, 1, D], what the pooler makes of the first token.
  State read_by_head(const State& state) const override {
    Tensor first = state.x.narrow(1, 0, 1);
    if (state.y.defined()) first = state.y.narrow(1, 0, 1).add(first).to(first.scalar_type());
    return {pooler_(first).tanh(), {}, {}};
  }

  // Texts of like lengths run as one kind: of 16, 32, 64, 128, 192, ... tokens.
  std::vector<int64_t> roomy(at::IntArrayRef shape) const override {
    const int64_t tokens = shape[1];
    const int64_t room = tokens <= 64 ? bucket_of(std::max<int64_t>(tokens, 16))
                                      : (tokens + 63) / 64 * 64;
    return {shape[0], std::min(room, config_.positions)};
  }

 private:
  static constexpr int64_t kRows = 3;  // words, mask and kinds

  // On a device, where nobody looks at the numbers: those that an embedding has.
  Tensor within_range(const Tensor& input) const {
    return at::minimum(input.clamp_min(0), most_.narrow(0, 0, input.size(1)));
  }

  Config config_;
  Tensor words_;
  Tensor positions_;
  Tensor kinds_;
  LayerNorm norm_;
  PostNormBlocks blocks_;
  Linear pooler_;
  Head head_;
  Tensor most_;  // [3, 1], the largest number in each row of an input
};

}  // namespace

std::unique_ptr<const Model> text_model(const Config& config, const Tensors& weights) {
  return std::make_unique<TextModel>(config, weights);
}

}  // namespace acn
