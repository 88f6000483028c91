// Tensors in, tensors out: the operators of the CPU kernels, which know neither torch nor Python.
//
// Shapes and dtypes were checked by acn_kernels.functional; here only what would make a kernel
// read or write out of bounds is checked again.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "acn/accumulate_norm.h"
#include "acn/bias_gelu.h"
#include "acn/fork.h"
#include "acn/join.h"
#include "bindings_engine.h"

namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

void parallel_for(int64_t count, int64_t grain, const acn::RangeBody& body) {
  at::parallel_for(0, count, grain, body);
}

acn::Dtype dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return acn::Dtype::f32;
    case at::kDouble: return acn::Dtype::f64;
    case at::kBFloat16: return acn::Dtype::bf16;
    case at::kHalf: return acn::Dtype::f16;
    default: TORCH_CHECK_TYPE(false, "the native kernels take fp32, fp64, bf16, fp16, not ", type);
  }
}

acn::Norm norm_of(const std::string& kind) {
  if (kind == "layer") return acn::Norm::layer;
  if (kind == "rms") return acn::Norm::rms;
  TORCH_CHECK_VALUE(kind == "none", "kind is '", kind, "'; it takes layer, rms or none");
  return acn::Norm::none;
}

struct Size {
  int64_t rows;
  int64_t width;
};

Size size_of(const Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() > 0 && x.size(-1) > 0, "a tensor of shape ", x.sizes(), " has no rows");
  return {x.numel() / x.size(-1), x.size(-1)};
}

at::ScalarType wide_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Calls run with a value of the type in which x's rows are summed.
template <class Run>
auto with_wide(const Tensor& x, const Run& run) {
  return wide_type(x) == at::kDouble ? run(double{}) : run(float{});
}

// The rows of a contiguous tensor, or of [N, D] with adjacent elements in each row.
acn::Rows rows_of(const Tensor& x, const char* name, Size size) {
  TORCH_CHECK_VALUE(x.is_cpu(), name, " is on ", x.device(), "; the native kernels run on cpu");
  const bool contiguous = x.is_contiguous();
  TORCH_CHECK_VALUE(contiguous || (x.dim() == 2 && x.stride(1) == 1), name, " has strides ",
                    x.strides(), "; the elements of a row must be adjacent");
  TORCH_CHECK_VALUE(x.dim() > 0 && x.size(-1) == size.width && x.numel() == size.rows * size.width,
                    name, " has shape ", x.sizes(), "; it takes ", size.rows, " rows of ",
                    size.width);
  return {x.const_data_ptr(), contiguous ? size.width : x.stride(0), dtype_of(x.scalar_type())};
}

acn::OutRows out_rows(const Tensor& x) {
  return {x.mutable_data_ptr(), dtype_of(x.scalar_type())};
}

// `tensor` packed and in the type of the sums, if it is there at all; holds the copy, if any.
template <class W>
class Wide {
 public:
  Wide(const MaybeTensor& tensor, const char* name, int64_t size) {
    if (!tensor) return;
    TORCH_CHECK_VALUE(tensor->is_cpu() && tensor->numel() == size, name, " has shape ",
                      tensor->sizes(), " on ", tensor->device(), "; it takes ", size, " on cpu");
    held_ = tensor->to(c10::CppTypeToScalarType<W>::value).contiguous();
  }

  const W* data() const { return held_.defined() ? held_.template const_data_ptr<W>() : nullptr; }

 private:
  Tensor held_;
};

template <class W>
W number(const MaybeTensor& scalar) {
  return scalar ? scalar->item<W>() : W(1);
}

template <class W>
W* data_or_null(const Tensor& x) {
  return x.numel() > 0 ? x.mutable_data_ptr<W>() : nullptr;
}

// Where each of x's rows lies in a tensor [..., kept, D] that holds some of them.
acn::RowMap row_map_of(const MaybeTensor& place, const Tensor& x, const Tensor& part) {
  if (!place) return {};
  TORCH_CHECK_VALUE(x.dim() > 1 && part.dim() > 1 && place->scalar_type() == at::kInt &&
                        place->is_contiguous() && place->numel() == x.size(-2),
                    "row_map takes one int32 for each token");
  const acn::RowMap map{place->const_data_ptr<int32_t>(), x.size(-2), part.size(-2)};
  for (int64_t token = 0; token < map.tokens; ++token) {
    TORCH_CHECK_VALUE(map.place[token] < map.kept, "row_map names row ", map.place[token], " of ",
                      map.kept);
  }
  return map;
}

Size size_of_part(const acn::RowMap& map, Size size) {
  return {map.place ? size.rows / map.tokens * map.kept : size.rows, size.width};
}

Tensor empty_rows(const Tensor& like, at::ScalarType type) {
  return at::empty(like.sizes(), like.options().dtype(type));
}

Tensor empty_wide(const Tensor& like, int64_t size) {
  return at::empty({size}, like.options().dtype(wide_type(like)));
}

std::tuple<Tensor, Tensor, Tensor> fork_forward(const Tensor& x, const Tensor& x_rows,
                                                const MaybeTensor& weight, const MaybeTensor& bias,
                                                double eps, const std::string& kind) {
  const Size size = size_of(x);
  Tensor h = empty_rows(x, x.scalar_type());
  Tensor mean = empty_wide(x, kind == "layer" ? size.rows : 0);
  Tensor rstd = empty_wide(x, size.rows);
  with_wide(x, [&](auto wide) {
    using W = decltype(wide);
    const Wide<W> wide_weight(weight, "weight", size.width);
    const Wide<W> wide_bias(bias, "bias", size.width);
    acn::ForkForward<W> args;
    args.rows = size.rows;
    args.width = size.width;
    args.x = rows_of(x_rows, "x", size);
    args.h = out_rows(h);
    args.mean = data_or_null<W>(mean);
    args.rstd = data_or_null<W>(rstd);
    args.affine = {wide_weight.data(), wide_bias.data()};
    args.eps = static_cast<W>(eps);
    args.norm = norm_of(kind);
    acn::fork_forward(args, parallel_for);
  });
  return {h, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fork_backward(
    const Tensor& dh_rows, const MaybeTensor& g, const MaybeTensor& g_rows, const Tensor& x,
    const Tensor& x_rows, const MaybeTensor& weight, const MaybeTensor& bias, const Tensor& mean,
    const Tensor& rstd, const MaybeTensor& scale, const MaybeTensor& row_map,
    const std::string& kind) {
  const Size size = size_of(x);
  const bool scaled = g && scale;
  Tensor dx = empty_rows(x, x.scalar_type());
  Tensor dweight = empty_wide(x, weight ? size.width : 0);
  Tensor dbias = empty_wide(x, bias ? size.width : 0);
  Tensor dscale = empty_wide(x, scaled ? 1 : 0);
  with_wide(x, [&](auto wide) {
    using W = decltype(wide);
    const Wide<W> wide_weight(weight, "weight", size.width);
    const Wide<W> wide_mean(mean, "mean", kind == "layer" ? size.rows : 0);
    const Wide<W> wide_rstd(rstd, "rstd", size.rows);
    acn::ForkBackward<W> args;
    args.rows = size.rows;
    args.width = size.width;
    args.dh = rows_of(dh_rows, "dh", size);
    args.x = rows_of(x_rows, "x", size);
    if (g) {
      args.g_rows = row_map_of(row_map, x, *g);
      args.g = rows_of(*g_rows, "g", size_of_part(args.g_rows, size));
      args.scale = number<W>(scale);
    }
    args.dx = out_rows(dx);
    args.weight = wide_weight.data();
    args.mean = wide_mean.data();
    args.rstd = wide_rstd.data();
    args.dweight = data_or_null<W>(dweight);
    args.dbias = data_or_null<W>(dbias);
    args.dscale = data_or_null<W>(dscale);
    args.norm = norm_of(kind);
    acn::fork_backward(args, parallel_for);
  });
  return {dx, weight ? dweight.to(weight->scalar_type()) : dweight,
          bias ? dbias.to(bias->scalar_type()) : dbias,
          scaled ? dscale.to(scale->scalar_type()).reshape(scale->sizes()) : dscale};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> join_forward(
    const Tensor& x, const std::vector<Tensor>& xs_rows, const MaybeTensor& scales,
    const MaybeTensor& weight, const MaybeTensor& bias, double eps, const std::string& kind,
    at::ScalarType out_dtype) {
  const Size size = size_of(x);
  const bool norm = kind != "none";
  Tensor out = empty_rows(x, out_dtype);
  Tensor y = norm ? empty_rows(x, wide_type(x)) : empty_wide(x, 0);
  Tensor mean = empty_wide(x, kind == "layer" ? size.rows : 0);
  Tensor rstd = empty_wide(x, norm ? size.rows : 0);
  with_wide(x, [&](auto wide) {
    using W = decltype(wide);
    const Wide<W> wide_scales(scales, "scales", static_cast<int64_t>(xs_rows.size()));
    const Wide<W> wide_weight(weight, "weight", size.width);
    const Wide<W> wide_bias(bias, "bias", size.width);
    acn::Join<W> args;
    args.rows = size.rows;
    args.width = size.width;
    for (const Tensor& source : xs_rows) args.xs.push_back(rows_of(source, "xs", size));
    args.scales = wide_scales.data();
    args.y = data_or_null<W>(y);
    args.out = out_rows(out);
    args.mean = data_or_null<W>(mean);
    args.rstd = data_or_null<W>(rstd);
    args.affine = {wide_weight.data(), wide_bias.data()};
    args.eps = static_cast<W>(eps);
    args.norm = norm_of(kind);
    acn::join(args, parallel_for);
  });
  return {out, y, mean, rstd};
}

Tensor accumulate_norm(const Tensor& x, const Tensor& x_rows, const Tensor& y, bool first,
                       const MaybeTensor& scale, double alpha, const MaybeTensor& row_map,
                       const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                       const std::string& kind, at::ScalarType out_dtype) {
  const Size size = size_of(x);
  Tensor h = empty_rows(x, out_dtype);
  with_wide(x, [&](auto wide) {
    using W = decltype(wide);
    const Wide<W> wide_weight(weight, "weight", size.width);
    const Wide<W> wide_bias(bias, "bias", size.width);
    acn::AccumulateNorm<W> args;
    args.rows = size.rows;
    args.width = size.width;
    args.x = rows_of(x_rows, "x", size);
    args.y_rows = row_map_of(row_map, x, y);
    TORCH_CHECK_VALUE(y.is_contiguous() && (alpha == 1 || !row_map),
                      "y must be contiguous, and alpha 1 where it holds some rows only");
    rows_of(y, "y", size_of_part(args.y_rows, size));
    args.y = y.mutable_data_ptr<W>();
    args.first = first;
    args.scale = number<W>(scale);
    args.alpha = static_cast<W>(alpha);
    args.h = out_rows(h);
    args.affine = {wide_weight.data(), wide_bias.data()};
    args.eps = static_cast<W>(eps);
    args.norm = norm_of(kind);
    acn::accumulate_norm(args, parallel_for);
  });
  return h;
}

Tensor bias_gelu(const Tensor& z, const Tensor& z_rows, const Tensor& bias) {
  TORCH_CHECK_TYPE(z.scalar_type() != at::kDouble, "bias_gelu computes in fp32, z is ",
                   z.scalar_type());
  const Size size = size_of(z);
  Tensor h = empty_rows(z, z.scalar_type());
  const Wide<float> wide_bias(bias, "bias", size.width);
  acn::BiasGelu args;
  args.rows = size.rows;
  args.width = size.width;
  args.z = rows_of(z_rows, "z", size);
  args.h = out_rows(h);
  args.bias = wide_bias.data();
  acn::bias_gelu(args, parallel_for);
  return h;
}

void activate(Tensor& x, const std::string& activation) {
  if (activation == "relu") {
    at::relu_(x);
  } else if (activation == "gelu") {
    at::gelu_(x);
  } else if (activation == "gelu_tanh") {
    at::gelu_(x, "tanh");
  } else {
    TORCH_CHECK_VALUE(activation == "silu", "activation is '", activation,
                      "'; it takes relu, gelu, gelu_tanh or silu");
    at::silu_(x);
  }
}

// The long sum of a pass that keeps nothing: its last term and the norm are one sweep.
class RunningSum {
 public:
  RunningSum(const Tensor& x, const MaybeTensor& scales, int64_t terms)
      : y_(at::empty(x.sizes(), x.options().dtype(wide_type(x)))), scales_(scales) {
    TORCH_CHECK_VALUE(!scales || scales->numel() == terms, "scales has shape ", scales->sizes(),
                      "; it takes ", terms);
    if (scales) held_ = scales->to(at::kDouble).contiguous();
  }

  void add(const Tensor& x, int64_t term) {
    const double scale = scales_ ? held_.const_data_ptr<double>()[term] : 1.0;
    if (!empty_) {
      y_.add_(x, scale);
    } else {
      y_.copy_(x);
      if (scales_) y_.mul_(scale);
    }
    empty_ = false;
  }

  Tensor finish(const Tensor& x, int64_t term, const MaybeTensor& weight, const MaybeTensor& bias,
                double eps, const std::string& kind, at::ScalarType out_dtype) const {
    const MaybeTensor scale = scales_ ? MaybeTensor(scales_->select(0, term)) : std::nullopt;
    return accumulate_norm(x, x, y_, empty_, scale, 0, std::nullopt, weight, bias, eps, kind,
                           out_dtype);
  }

 private:
  Tensor y_;
  MaybeTensor scales_;
  Tensor held_;
  bool empty_ = true;
};

Tensor linear_layers(const Tensor& x, const std::vector<Tensor>& weight,
                     const std::vector<Tensor>& bias, const MaybeTensor& scales,
                     const MaybeTensor& norm_weight, const MaybeTensor& norm_bias, double eps,
                     const std::string& kind, const std::string& activation, bool include_input,
                     at::ScalarType out_dtype) {
  const at::AutoDispatchBelowADInplaceOrView no_gradient;
  const auto depth = static_cast<int64_t>(weight.size());
  const Size size = size_of(x);
  TORCH_CHECK_VALUE(depth > 0 && (bias.empty() || bias.size() == weight.size()), "weight has ",
                    depth, " layers, bias ", bias.size(), "; they take at least one and as many");
  Tensor rows = x.reshape({size.rows, size.width});
  RunningSum sum(rows, scales, depth + 1);
  if (include_input) sum.add(rows, 0);
  for (int64_t i = 0; i < depth; ++i) {
    rows = at::linear(rows, weight[i], bias.empty() ? MaybeTensor() : bias[i]);
    activate(rows, activation);
    if (i + 1 < depth) sum.add(rows, i + 1);
  }
  return sum.finish(rows, depth, norm_weight, norm_bias, eps, kind, out_dtype).view(x.sizes());
}

std::string torch_version() {
  const std::string full = TORCH_VERSION;
  return full.substr(0, full.find('+'));
}

#define ACN_TEXT_OF(name) #name
#define ACN_TEXT(name) ACN_TEXT_OF(name)
#ifndef ACN_CUDA
#define ACN_CUDA cpu
#endif

// acn_kernels/_extension.py looks for this in the file before it loads it: to load an extension
// that was built for another torch may be to crash.
#if defined(__GNUC__)
__attribute__((used))
#endif
const char kBuiltFor[] = "acn_kernels built for torch " ACN_TEXT(TORCH_VERSION_MAJOR) "."
    ACN_TEXT(TORCH_VERSION_MINOR) ", cuda " ACN_TEXT(ACN_CUDA) ";";

}  // namespace

#ifdef ACN_WITH_CUDA
void bind_cuda(py::module_& m);  // bindings_cuda.cpp
#endif

PYBIND11_MODULE(_native, m) {
  m.doc() = "The compiled kernels of acn_kernels; call them through acn_kernels.functional.";
  m.attr("torch_version") = torch_version();
  m.attr("cuda_version") = ACN_TEXT(ACN_CUDA);
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("fork_forward", &fork_forward, no_gil);
  m.def("fork_backward", &fork_backward, no_gil);
  m.def("join_forward", &join_forward, no_gil);
  m.def("accumulate_norm", &accumulate_norm, no_gil);
  m.def("bias_gelu", &bias_gelu, no_gil);
  m.def("linear_layers", &linear_layers, no_gil);
  acn::bind_engine(m);
#ifdef ACN_WITH_CUDA
  bind_cuda(m);
#endif
}
