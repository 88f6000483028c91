#include "row_ops.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>

#include <vector>

#include "acn/accumulate_norm.h"
#include "acn/bias_gelu.h"
#include "acn/exit_pool.h"
#include "acn/fork.h"
#include "device.h"

namespace acn {
namespace {

Dtype dtype_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? Dtype::f32 : Dtype::bf16;
}

Rows rows_of(const at::Tensor& x) { return {x.const_data_ptr(), x.size(-1), dtype_of(x)}; }

OutRows out_rows(const at::Tensor& x) { return {x.mutable_data_ptr(), dtype_of(x)}; }

// Weight and bias as the kernels take them; fp32 parameters are read where they lie.
struct WideNorm {
  explicit WideNorm(const LayerNorm& norm)
      : weight(norm.weight.to(at::kFloat).contiguous()),
        bias(norm.bias.to(at::kFloat).contiguous()) {}

  Affine<float> affine() const {
    return {weight.const_data_ptr<float>(), bias.const_data_ptr<float>()};
  }

  at::Tensor weight;
  at::Tensor bias;
};

at::Tensor accumulate_norm_on_device(const at::Tensor& x, at::Tensor& y, bool first_row,
                                     const LayerNorm& norm) {
  if (!first_row) return device::accumulate_norm(x, y, norm);
  const at::Tensor term = x.narrow(1, 0, 1);
  if (y.defined()) {
    y.add_(term);
  } else {
    y = at::empty(term.sizes(), term.options().dtype(at::kFloat)).copy_(term);
  }
  return device::norm(x, norm, LayerNorm::kEps);
}

}  // namespace

void parallel_for(int64_t count, int64_t grain, const RangeBody& body) {
  at::parallel_for(0, count, grain, body);
}

at::Tensor norm(const at::Tensor& x, const LayerNorm& norm) {
  if (!x.is_cpu()) return device::norm(x, norm, LayerNorm::kEps);
  const WideNorm wide(norm);
  at::Tensor h = at::empty_like(x);
  ForkForward<float> args;
  args.width = x.size(-1);
  args.rows = x.numel() / args.width;
  at::Tensor rstd = at::empty({args.rows}, x.options().dtype(at::kFloat));
  args.x = rows_of(x);
  args.h = out_rows(h);
  args.rstd = rstd.mutable_data_ptr<float>();
  args.affine = wide.affine();
  args.eps = LayerNorm::kEps;
  args.norm = Norm::layer;
  fork_forward(args, parallel_for);
  return h;
}

at::Tensor accumulate_norm(const at::Tensor& x, at::Tensor& y, bool first_row,
                           const LayerNorm& norm, double alpha) {
  if (!x.is_cpu()) return accumulate_norm_on_device(x, y, first_row, norm);
  const WideNorm wide(norm);
  const int64_t samples = x.size(0), tokens = x.size(1), width = x.size(2);
  AccumulateNorm<float> args;
  std::vector<int32_t> places;
  if (first_row) {
    places.assign(static_cast<size_t>(tokens), -1);
    places[0] = 0;
    args.y_rows = {places.data(), tokens, 1};
  }
  args.first = !y.defined();
  if (!y.defined()) {
    y = at::empty({samples, first_row ? 1 : tokens, width}, x.options().dtype(at::kFloat));
  }
  at::Tensor h = at::empty_like(x);
  args.rows = samples * tokens;
  args.width = width;
  args.x = rows_of(x);
  args.y = y.mutable_data_ptr<float>();
  args.h = out_rows(h);
  args.alpha = static_cast<float>(alpha);
  args.affine = wide.affine();
  args.eps = LayerNorm::kEps;
  args.norm = Norm::layer;
  accumulate_norm(args, parallel_for);
  return h;
}

void bias_gelu(at::Tensor& x, const at::Tensor& bias) {
  if (!x.is_cpu()) {
    if (bias.defined()) x.add_(bias);
    at::gelu_(x);
    return;
  }
  at::Tensor wide;
  if (bias.defined()) wide = bias.to(at::kFloat).contiguous();
  BiasGelu args;
  args.width = x.size(-1);
  args.rows = x.numel() / args.width;
  args.z = rows_of(x);
  args.h = out_rows(x);
  args.bias = wide.defined() ? wide.const_data_ptr<float>() : nullptr;
  bias_gelu(args, parallel_for);
}

at::Tensor exit_pool(const at::Tensor& x, const at::Tensor& y, bool first_row,
                     const LayerNorm& norm) {
  const WideNorm wide(norm);
  at::Tensor pooled = at::empty({x.size(0), x.size(2)}, x.options().dtype(at::kFloat));
  at::Tensor sum = y;
  if (first_row && y.defined()) sum = y.narrow(1, 0, 1).contiguous();
  ExitPool<float> args;
  args.samples = x.size(0);
  args.tokens = first_row ? 1 : x.size(1);
  args.width = x.size(2);
  args.x = rows_of(x);
  args.tokens_of_x = x.size(1);
  args.y = sum.defined() ? sum.const_data_ptr<float>() : nullptr;
  args.affine = wide.affine();
  args.eps = LayerNorm::kEps;
  args.norm = Norm::layer;
  args.pooled = pooled.mutable_data_ptr<float>();
  exit_pool(args, parallel_for);
  return pooled.to(x.scalar_type());
}

}  // namespace acn
