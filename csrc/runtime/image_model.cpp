#include "image_model.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>

#include <algorithm>
#include <cmath>

#include "acn/runtime/errors.h"
#include "head.h"
#include "model.h"

namespace acn {
namespace {

using at::Tensor;

// As acn_kernels.models.vit.sincos_2d: a quarter of the width each for the sines and cosines of
// both coordinates.
Tensor sincos_2d(int64_t side, int64_t width) {
  const int64_t quarter = width / 4;
  const double step = -std::log(10000.0) / static_cast<double>(std::max<int64_t>(quarter - 1, 1));
  const Tensor omega = at::arange(quarter).mul(step).exp();
  const Tensor places = at::arange(side);
  const Tensor y = places.repeat_interleave(side).unsqueeze(1).mul(omega);
  const Tensor x = places.repeat({side}).unsqueeze(1).mul(omega);
  return at::cat({x.sin(), x.cos(), y.sin(), y.cos()}, 1);
}

class ImageModel final : public Model {
 public:
  ImageModel(const Config& config, const Tensors& weights)
      : config_(config),
        dtype_(weights.at("stem.weight").scalar_type()),
        device_(weights.at("stem.weight").device()),
        stem_(config, weights),
        blocks_(blocks_of(config, weights)),
        head_{config.class_token, norm_at(weights, "blocks.norm"), linear_at(weights, "head")} {}

  void check(const Tensor& images) const override {
    const int64_t channels = config_.channels, size = config_.image_size;
    if (images.dim() != 4 || images.size(1) != channels || images.size(2) != size ||
        images.size(3) != size) {
      throw std::invalid_argument(text("images has shape ", images.sizes(), "; it takes [batch, ",
                                       channels, ", ", size, ", ", size, "]"));
    }
    if (images.device() != device_ || images.scalar_type() != dtype_) {
      throw std::invalid_argument(text("images is ", images.scalar_type(), " on ",
                                       images.device(), "; it takes ", dtype_, " on ", device_));
    }
  }

  State embed(const Tensor& images) const override { return {stem_(images), {}, {}}; }

  std::shared_ptr<const Segment> segment(int64_t begin, int64_t end) const override {
    return std::make_shared<NativeSegment>(blocks_, begin, end, config_.alpha,
                                           config_.class_token);
  }

  Tensor logits(const State& state) const override {
    return head_.linear(exit_pool(state.x, state.y, head_.first_row, *head_.norm));
  }

  const Head* head() const override { return &head_; }

 private:
  Config config_;
  at::ScalarType dtype_;
  at::Device device_;
  Stem stem_;
  Blocks blocks_;
  Head head_;
};

}  // namespace

std::unique_ptr<const Model> image_model(const Config& config, const Tensors& weights) {
  return std::make_unique<ImageModel>(config, weights);
}

Stem::Stem(const Config& config, const Tensors& weights)
    : patch_(config.patch_size),
      weight_(weights.at("stem.weight")),
      projection_{weight_.flatten(1), weights.at("stem.bias")} {
  if (config.family == Family::vit) {
    positions_ = sincos_2d(config.image_size / patch_, config.width)
                     .to(projection_.weight.options());
  }
  if (config.class_token) class_token_ = weights.at("cls_token");
}

Tensor Stem::operator()(const Tensor& images) const {
  // A convolution whose stride is its size: one product over patches.
  const int64_t samples = images.size(0), channels = images.size(1);
  const int64_t side = images.size(2) / patch_;
  const Tensor patches = images.view({samples, channels, side, patch_, side, patch_})
                             .permute({0, 2, 4, 1, 3, 5})
                             .reshape({samples, side * side, channels * patch_ * patch_});
  Tensor x = weight_.is_contiguous()
                 ? projection_(patches)
                 : at::linear(patches, weight_.flatten(1), projection_.bias);
  if (positions_.defined()) x.add_(positions_);
  if (!class_token_.defined()) return x;
  return at::cat({class_token_.expand({samples, 1, -1}), x}, 1);
}

}  // namespace acn
