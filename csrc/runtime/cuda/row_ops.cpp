#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include "../device.h"
#include "acn/cuda/accumulate_norm.h"
#include "acn/cuda/bias_gelu.h"
#include "acn/cuda/bias_norm.h"
#include "stream.h"

namespace acn::device {

at::Tensor accumulate_norm(const at::Tensor& x, at::Tensor& y, const LayerNorm& norm) {
  cuda::AccumulateNorm args;
  args.first = !y.defined();
  if (args.first) y = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  at::Tensor h = at::empty_like(x);
  args.width = x.size(-1);
  args.rows = x.numel() / args.width;
  args.x = {x.const_data_ptr(), args.width, dtype_of(x)};
  args.y = y.mutable_data_ptr<float>();
  args.h = {h.mutable_data_ptr(), dtype_of(h)};
  const at::Tensor weight = norm.weight.contiguous(), bias = norm.bias.contiguous();
  args.weight = vector_of(weight);
  args.bias = vector_of(bias);
  args.eps = LayerNorm::kEps;
  args.norm = Norm::layer;
  check(cuda::accumulate_norm(args, stream_of(x)), "accumulate_norm");
  return h;
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
