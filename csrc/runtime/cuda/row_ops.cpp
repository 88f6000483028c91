#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include "../device.h"
#include "acn/cuda/accumulate_norm.h"
#include "acn/cuda/bias_gelu.h"
#include "acn/cuda/bias_norm.h"
#include "stream.h"

namespace acn::device {

namespace {

// y += x, where there is a y, and norm(x).
at::Tensor sum_and_norm(const at::Tensor& given, float* y, bool first, const LayerNorm& norm,
                        double eps) {
  const at::Tensor x = given.contiguous();
  at::Tensor h = at::empty_like(x);
  const at::Tensor weight = norm.weight.contiguous(), bias = norm.bias.contiguous();
  cuda::AccumulateNorm args;
  args.width = x.size(-1);
  args.rows = x.numel() / args.width;
  args.x = {x.const_data_ptr(), args.width, dtype_of(x)};
  args.y = y;
  args.first = first;
  args.h = {h.mutable_data_ptr(), dtype_of(h)};
  args.weight = vector_of(weight);
  args.bias = vector_of(bias);
  args.eps = static_cast<float>(eps);
  args.norm = Norm::layer;
  check(cuda::accumulate_norm(args, stream_of(x)), "accumulate_norm");
  return h;
}

}  // namespace

at::Tensor accumulate_norm(const at::Tensor& x, at::Tensor& y, const LayerNorm& norm) {
  const bool first = !y.defined();
  if (first) y = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  return sum_and_norm(x, y.mutable_data_ptr<float>(), first, norm, LayerNorm::kEps);
}

at::Tensor norm(const at::Tensor& x, const LayerNorm& norm, double eps) {
  return sum_and_norm(x, nullptr, false, norm, eps);
}

namespace {

// A bias along the token axis, without gaps.
at::Tensor by_token(const at::Tensor& bias, int64_t tokens) {
  TORCH_CHECK(bias.sizes() == at::IntArrayRef{tokens}, "a bias has shape ", bias.sizes(),
              "; it takes one number for each of ", tokens, " tokens");
  return bias.contiguous();
}

}  // namespace

void bias_gelu(at::Tensor& z, const at::Tensor& bias) {
  const at::Tensor whole = by_token(bias, z.size(1));
  const cuda::BiasGelu args{z.size(0), z.size(1), z.size(2),
                            {z.mutable_data_ptr(), dtype_of(z)}, vector_of(whole)};
  check(cuda::bias_gelu(args, stream_of(z)), "bias_gelu");
}

void bias_norm(at::Tensor& z, const at::Tensor& bias, const LayerNorm& norm) {
  const at::Tensor whole = by_token(bias, z.size(1));
  const at::Tensor norm_weight = norm.weight.contiguous(), norm_bias = norm.bias.contiguous();
  const cuda::BiasNorm args{z.size(0), z.size(1), z.size(2),
                            {z.mutable_data_ptr(), dtype_of(z)}, vector_of(whole),
                            vector_of(norm_weight), vector_of(norm_bias), LayerNorm::kEps};
  check(cuda::bias_norm(args, stream_of(z)), "bias_norm");
}

}  // namespace acn::device
