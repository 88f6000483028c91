#include "linear.h"

#include <ATen/Parallel.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <c10/util/Exception.h>

#include <vector>

#include "acn/mlp.h"
#include "device.h"
#include "pieces.h"

namespace acn {
namespace {

using at::Tensor;

Tensor empty_rows(const Tensor& x, int64_t width) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = width;
  return at::empty(shape, x.options());
}

// What a kernel, which asks for no shapes, may read of a parameter that somebody else may resize.
const float* values(const Tensor& parameter, at::IntArrayRef shape) {
  TORCH_CHECK(parameter.sizes() == shape, "a parameter has shape ", parameter.sizes(),
              "; it takes ", shape);
  return parameter.const_data_ptr<float>();
}

void check_width(const Tensor& x, int64_t width) {
  TORCH_CHECK(x.size(-1) == width, "rows of ", x.size(-1), " meet a weight for ", width);
}

Tensor packed_product(const Tensor& x, const Linear& map, bool gelu) {
  const Tensor rows = x.contiguous(), bias = map.bias.contiguous();
  const std::shared_ptr<const Panels> weight = map.packed->panels();
  check_width(x, weight->inputs());
  Tensor out = empty_rows(x, weight->outputs());
  Product args;
  args.rows = rows.numel() / weight->inputs();
  args.x = rows.const_data_ptr<float>();
  args.stride = weight->inputs();
  args.weight = weight.get();
  args.bias = values(bias, {weight->outputs()});
  args.out = out.mutable_data_ptr<float>();
  args.gelu = gelu;
  product(args, parallel_for);
  return out;
}

Tensor packed_mlp(const Tensor& x, const LayerNorm* norm, const Linear& fc1, const Linear& fc2) {
  const Tensor rows = x.contiguous(), bias1 = fc1.bias.contiguous(), bias2 = fc2.bias.contiguous();
  const std::shared_ptr<const Panels> weight1 = fc1.packed->panels();
  const std::shared_ptr<const Panels> weight2 = fc2.packed->panels();
  check_width(x, weight1->inputs());
  TORCH_CHECK(weight2->inputs() == weight1->outputs(), "an MLP's weights do not fit together");
  const bool in_place = weight2->outputs() == weight1->inputs();
  Tensor out = in_place ? rows : empty_rows(x, weight2->outputs());
  ChannelMlp args;
  args.rows = rows.numel() / weight1->inputs();
  args.x = rows.const_data_ptr<float>();
  Tensor norm_weight, norm_bias;
  if (norm) {
    norm_weight = norm->weight.contiguous();
    norm_bias = norm->bias.contiguous();
    args.norm = Norm::layer;
    args.affine = {values(norm_weight, {weight1->inputs()}),
                   values(norm_bias, {weight1->inputs()})};
    args.eps = LayerNorm::kEps;
  }
  args.fc1 = weight1.get();
  args.bias1 = values(bias1, {weight1->outputs()});
  args.fc2 = weight2.get();
  args.bias2 = values(bias2, {weight2->outputs()});
  args.out = out.mutable_data_ptr<float>();
  channel_mlp(args, parallel_for);
  return out;
}

Tensor packed_token_mlp(const Tensor& x, const Linear& fc1, const Linear& fc2) {
  Tensor samples = x.contiguous();
  const Tensor weight1 = fc1.weight.contiguous(), bias1 = fc1.bias.contiguous();
  const Tensor weight2 = fc2.weight.contiguous(), bias2 = fc2.bias.contiguous();
  TokenMlp args;
  args.samples = samples.size(0);
  args.tokens = samples.size(1);
  args.width = samples.size(2);
  args.hidden = bias1.size(0);
  args.x = samples.const_data_ptr<float>();
  args.weight1 = values(weight1, {args.hidden, args.tokens});
  args.bias1 = values(bias1, {args.hidden});
  args.weight2 = values(weight2, {args.tokens, args.hidden});
  args.bias2 = values(bias2, {args.tokens});
  args.out = samples.mutable_data_ptr<float>();
  token_mlp(args, tiles_here().front(), parallel_for);
  return samples;
}

// ATen's map along the token axis, as a product from the left: nothing is transposed.
Tensor map_tokens(const Linear& map, const Tensor& h) {
  const int64_t samples = h.size(0);
  const Tensor weight = map.weight.expand({samples, -1, -1});
  return at::baddbmm(map.bias.view({1, -1, 1}), weight, h);
}

// The same on a device, where a bias would be a copy of its own: the first goes with the GELU, the
// second is left to the norm that follows.
Tensor token_mlp_on_device(const Tensor& x, const Linear& fc1, const Linear& fc2) {
  const int64_t samples = x.size(0);
  Tensor mixed = at::bmm(fc1.weight.expand({samples, -1, -1}), x);
  device::bias_gelu(mixed, fc1.bias);
  return at::bmm(fc2.weight.expand({samples, -1, -1}), mixed);
}

}  // namespace

Linear::Linear(Tensor of, Tensor added)
    : weight(std::move(of)), bias(std::move(added)), packed(PackedWeight::of(weight)) {}

Tensor Linear::operator()(const Tensor& x) const {
  return packed ? packed_product(x, *this, false) : at::linear(x, weight, bias);
}

Linear linear_at(const Tensors& weights, const std::string& name) {
  return {weights.at(name + ".weight"), weights.at(name + ".bias")};
}

Tensor Mlp::operator()(Tensor x, const LayerNorm* before) const {
  const int64_t rows = x.numel() / x.size(-1);
  if (fc1.packed && fc2.packed) {
    // A tile of rows for each thread; of fewer rows each computes some of the outputs.
    const int64_t tile = tiles_here().front().rows;
    if (free_threads(rows, tile) == free_threads(rows, 1)) return packed_mlp(x, before, fc1, fc2);
    return packed_product(packed_product(before ? norm(x, *before) : x, fc1, true), fc2, false);
  }
  const Tensor h = before ? norm(x, *before) : x;
  if (!h.is_cpu()) return fc2(at::gelu(fc1(h)));
  // Of too few rows for all threads, each computes some of the hidden units instead, and what
  // those add to the output.
  return sum_of_pieces(fc1.weight.size(0), kLeastOfProduct, [&](int64_t begin, int64_t end) {
    Tensor hidden = at::linear(h, fc1.weight.slice(0, begin, end));
    bias_gelu(hidden, fc1.bias.slice(0, begin, end));
    const Tensor weight = fc2.weight.slice(1, begin, end);
    return begin ? at::linear(hidden, weight) : at::linear(hidden, weight, fc2.bias);
  });
}

Tensor Mlp::over_tokens(Tensor x) const {
  if (!x.is_cpu()) return token_mlp_on_device(x, fc1, fc2);
  if (fc1.packed && fc2.packed) return packed_token_mlp(x, fc1, fc2);
  return in_pieces(x, 2, kLeastOfProduct, [&](const Tensor& channels, int64_t) {
    Tensor mixed = map_tokens(fc1, channels);
    bias_gelu(mixed, {});
    return map_tokens(fc2, mixed);
  });
}

}  // namespace acn
