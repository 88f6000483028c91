// The CUDA kernels for tensors, on the current stream; compiled where there is CUDA.
//
// Shapes and dtypes were checked by acn_kernels.functional and acn_kernels.cuda_ops; here only what
// would make a kernel read or write out of bounds is checked again.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "acn/cuda/accumulate_norm.h"
#include "acn/cuda/compact.h"
#include "acn/cuda/exit_head.h"
#include "acn/cuda/join.h"

namespace {

using acn::Dtype;
using acn::cuda::Vector;
using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Enqueues on the stream that PyTorch works on; an error of the launch becomes an exception.
template <class Launch>
void run(const Tensor& x, const char* operation, const Launch& launch) {
  const cudaError_t error = launch(c10::cuda::getCurrentCUDAStream(x.get_device()).stream());
  TORCH_CHECK(error == cudaSuccess, operation, ": ", cudaGetErrorString(error));
}

Dtype dtype_of(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case at::kFloat: return Dtype::f32;
    case at::kBFloat16: return Dtype::bf16;
    case at::kHalf: return Dtype::f16;
    default:
      TORCH_CHECK_TYPE(false, name, " has dtype ", x.scalar_type(),
                       "; the CUDA kernels take fp32, bf16 and fp16");
  }
}

void check_place(const Tensor& x, const char* name, const Tensor& like) {
  TORCH_CHECK_VALUE(x.is_cuda(), name, " is on ", x.device(), "; it takes cuda");
  TORCH_CHECK_VALUE(x.device() == like.device(), name, " is on ", x.device(), "; it takes ",
                    like.device());
}

void check_packed(const Tensor& x, const char* name, const Tensor& like, int64_t size,
                  at::ScalarType type) {
  check_place(x, name, like);
  TORCH_CHECK_VALUE(x.is_contiguous() && x.numel() == size && x.scalar_type() == type, name,
                    " is ", x.scalar_type(), " of shape ", x.sizes(), " and strides ",
                    x.strides(), "; it takes ", size, " elements of ", type, " without gaps");
}

struct Size {
  int64_t rows;
  int64_t width;
};

Size size_of(const Tensor& x) {
  TORCH_CHECK_VALUE(x.is_cuda() && x.dim() > 0 && x.size(-1) > 0, "x is on ", x.device(),
                    " and has shape ", x.sizes(), "; it takes rows on cuda");
  TORCH_CHECK_VALUE(x.size(-1) <= acn::cuda::kMaxWidth, "x has rows of ", x.size(-1),
                    "; the CUDA kernels take up to ", acn::cuda::kMaxWidth);
  return {x.numel() / x.size(-1), x.size(-1)};
}

// [N, D] with adjacent elements in each row.
acn::Rows rows_of(const Tensor& x, const char* name, const Tensor& like, Size size) {
  check_place(x, name, like);
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) == size.rows && x.size(1) == size.width &&
                        (size.width == 1 || x.stride(1) == 1),
                    name, " has shape ", x.sizes(), " and strides ", x.strides(), "; it takes ",
                    size.rows, " rows of ", size.width, " adjacent elements");
  return {x.const_data_ptr(), x.stride(0), dtype_of(x, name)};
}

acn::OutRows out_rows(const Tensor& x, const char* name) {
  return {x.mutable_data_ptr(), dtype_of(x, name)};
}

Vector vector_of(const MaybeTensor& x, const char* name, const Tensor& like, int64_t size) {
  if (!x) return {};
  check_packed(*x, name, like, size, x->scalar_type());
  return {x->const_data_ptr(), dtype_of(*x, name)};
}

const float* floats_of(const MaybeTensor& x, const char* name, const Tensor& like, int64_t size) {
  if (!x) return nullptr;
  check_packed(*x, name, like, size, at::kFloat);
  return x->const_data_ptr<float>();
}

acn::Norm norm_of(const std::string& kind) {
  if (kind == "layer") return acn::Norm::layer;
  if (kind == "rms") return acn::Norm::rms;
  TORCH_CHECK_VALUE(kind == "none", "kind is '", kind, "'; it takes layer, rms or none");
  return acn::Norm::none;
}

Tensor empty(const Tensor& like, at::IntArrayRef sizes, at::ScalarType type) {
  return at::empty(sizes, like.options().dtype(type));
}

// x [..., T, D] beside x_rows, the same as [N, D]. What row_map names was checked where it was
// made: to read it here would make the host wait for the device.
Tensor accumulate_norm(const Tensor& x, const Tensor& x_rows, const Tensor& y, bool first,
                       const MaybeTensor& scale, double alpha, const MaybeTensor& row_map,
                       const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                       const std::string& kind, at::ScalarType out_dtype) {
  const Size size = size_of(x);
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor h = empty(x, x.sizes(), out_dtype);
  acn::cuda::AccumulateNorm args;
  args.rows = size.rows;
  args.width = size.width;
  args.x = rows_of(x_rows, "x", x, size);
  int64_t held = size.rows;
  if (row_map) {
    TORCH_CHECK_VALUE(x.dim() > 1 && y.dim() > 1 && alpha == 1,
                      "with row_map, x is [..., T, D], y is [..., R, D] and alpha is 1");
    check_packed(*row_map, "row_map", x, x.size(-2), at::kInt);
    args.y_rows = {row_map->const_data_ptr<int32_t>(), x.size(-2), y.size(-2)};
    held = x.size(-2) == 0 ? 0 : size.rows / x.size(-2) * y.size(-2);
  }
  check_packed(y, "y", x, held * size.width, at::kFloat);
  args.y = y.mutable_data_ptr<float>();
  args.first = first;
  args.scale = floats_of(scale, "scale", x, 1);
  args.alpha = static_cast<float>(alpha);
  args.h = out_rows(h, "h");
  args.weight = vector_of(weight, "weight", x, size.width);
  args.bias = vector_of(bias, "bias", x, size.width);
  args.eps = static_cast<float>(eps);
  args.norm = norm_of(kind);
  run(x, "accumulate_norm", [&](cudaStream_t s) { return acn::cuda::accumulate_norm(args, s); });
  return h;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> join_forward(
    const Tensor& x, const std::vector<Tensor>& xs_rows, const MaybeTensor& scales,
    const MaybeTensor& weight, const MaybeTensor& bias, double eps, const std::string& kind,
    at::ScalarType out_dtype) {
  const Size size = size_of(x);
  const c10::cuda::CUDAGuard guard(x.device());
  const auto terms = static_cast<int64_t>(xs_rows.size());
  const bool norm = kind != "none";
  Tensor out = empty(x, x.sizes(), out_dtype);
  Tensor y = norm ? empty(x, x.sizes(), at::kFloat) : empty(x, {0}, at::kFloat);
  // Without a norm nobody reads the sum, but more terms than one launch adds need it in between.
  const Tensor carried =
      norm || terms <= acn::cuda::kTermsPerLaunch ? y : empty(x, x.sizes(), at::kFloat);
  Tensor mean = empty(x, {kind == "layer" ? size.rows : 0}, at::kFloat);
  Tensor rstd = empty(x, {norm ? size.rows : 0}, at::kFloat);
  std::vector<acn::Rows> sources;
  for (const Tensor& source : xs_rows) sources.push_back(rows_of(source, "xs", x, size));
  acn::cuda::Join args;
  args.rows = size.rows;
  args.width = size.width;
  args.xs = sources.data();
  args.terms = terms;
  args.scales = floats_of(scales, "scales", x, terms);
  args.y = carried.numel() > 0 ? carried.mutable_data_ptr<float>() : nullptr;
  args.out = out_rows(out, "out");
  args.mean = mean.numel() > 0 ? mean.mutable_data_ptr<float>() : nullptr;
  args.rstd = rstd.numel() > 0 ? rstd.mutable_data_ptr<float>() : nullptr;
  args.weight = vector_of(weight, "weight", x, size.width);
  args.bias = vector_of(bias, "bias", x, size.width);
  args.eps = static_cast<float>(eps);
  args.norm = norm_of(kind);
  if (size.rows > 0) {
    run(x, "join_forward", [&](cudaStream_t s) { return acn::cuda::join(args, s); });
  }
  return {out, y, mean, rstd};
}

acn::cuda::Tokens tokens_of(const Tensor& x, const char* name, const Tensor& like,
                            int64_t samples, int64_t tokens) {
  check_place(x, name, like);
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(0) == samples && x.size(1) >= tokens &&
                        x.size(2) == like.size(2) && (x.size(2) == 1 || x.stride(2) == 1),
                    name, " has shape ", x.sizes(), " and strides ", x.strides(), "; it takes [",
                    samples, ", ", tokens, ", ", like.size(2), "] with adjacent columns");
  return {x.const_data_ptr(), x.stride(0), x.stride(1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> exit_head(
    const Tensor& x, const MaybeTensor& y, const MaybeTensor& scale,
    const MaybeTensor& norm_weight, const MaybeTensor& norm_bias, double eps,
    const std::string& kind, bool first_token, const Tensor& weight, const MaybeTensor& bias,
    double threshold) {
  TORCH_CHECK_VALUE(x.is_cuda() && x.dim() == 3 && x.size(1) > 0 && x.size(2) > 0 &&
                        x.size(2) <= acn::cuda::kMaxExitWidth,
                    "x is on ", x.device(), " and has shape ", x.sizes(),
                    "; it takes [B, T, D] on cuda with D up to ", acn::cuda::kMaxExitWidth);
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(0) > 0, "weight has shape ", weight.sizes());
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t samples = x.size(0), classes = weight.size(0), width = x.size(2);
  Tensor logits = empty(x, {samples, classes}, x.scalar_type());
  Tensor entropy = empty(x, {samples}, at::kFloat);
  Tensor stays = empty(x, {samples}, at::kBool);
  Tensor live = empty(x, {}, at::kInt);
  acn::cuda::ExitHead args;
  args.samples = samples;
  args.tokens = first_token ? 1 : x.size(1);
  args.width = width;
  args.classes = classes;
  args.dtype = dtype_of(x, "x");
  args.x = tokens_of(x, "x", x, samples, args.tokens);
  if (y) {
    TORCH_CHECK_TYPE(y->scalar_type() == at::kFloat, "y has dtype ", y->scalar_type());
    args.y = tokens_of(*y, "y", x, samples, args.tokens);
  }
  args.scale = floats_of(scale, "scale", x, 1);
  args.norm_weight = vector_of(norm_weight, "norm_weight", x, width);
  args.norm_bias = vector_of(norm_bias, "norm_bias", x, width);
  args.eps = static_cast<float>(eps);
  args.norm = norm_of(kind);
  check_packed(weight, "weight", x, classes * width, x.scalar_type());
  args.weight = weight.const_data_ptr();
  if (bias) {
    check_packed(*bias, "bias", x, classes, x.scalar_type());
    args.bias = bias->const_data_ptr();
  }
  args.threshold = static_cast<float>(threshold);
  args.logits = logits.mutable_data_ptr();
  args.certainty = entropy.mutable_data_ptr<float>();
  args.stays = stays.mutable_data_ptr<bool>();
  args.live = live.mutable_data_ptr<int32_t>();
  run(x, "exit_head", [&](cudaStream_t s) {
    const cudaError_t error = cudaMemsetAsync(args.live, 0, sizeof *args.live, s);
    return error == cudaSuccess ? acn::cuda::exit_head(args, s) : error;
  });
  return {logits, entropy, stays, live};
}

// Each tensor beside itself as [B, K] with adjacent elements in each sample.
std::tuple<std::vector<Tensor>, Tensor> compact(const Tensor& stays,
                                                const std::vector<Tensor>& tensors,
                                                const std::vector<Tensor>& rows, int64_t kept) {
  const int64_t samples = stays.numel();
  check_packed(stays, "stays", stays, samples, at::kBool);
  TORCH_CHECK_VALUE(tensors.size() == rows.size(), "as many tensors as rows");
  const c10::cuda::CUDAGuard guard(stays.device());
  const Tensor places = empty(stays, {samples}, at::kInt);
  const Tensor count = empty(stays, {}, at::kInt);
  acn::cuda::Places found;
  found.samples = samples;
  if (samples > 0) {
    found.stays = stays.const_data_ptr<bool>();
    found.places = places.mutable_data_ptr<int32_t>();
  }
  found.count = count.mutable_data_ptr<int32_t>();
  run(stays, "compact",
      [&](cudaStream_t s) { return acn::cuda::compaction_places(found, s); });
  std::vector<Tensor> outs;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& from = rows[i];
    check_place(from, "tensors", stays);
    TORCH_CHECK_VALUE(from.dim() == 2 && from.size(0) == samples &&
                          from.numel() == tensors[i].numel() &&
                          (from.size(1) <= 1 || from.stride(1) == 1),
                      "tensors has shape ", from.sizes(), " and strides ", from.strides());
    std::vector<int64_t> sizes = tensors[i].sizes().vec();
    sizes[0] = kept;
    outs.push_back(at::empty(sizes, from.options()));
    if (outs.back().numel() == 0) continue;
    const auto element = static_cast<int64_t>(from.element_size());
    acn::cuda::Compaction args;
    args.samples = samples;
    args.kept = kept;
    args.places = samples > 0 ? places.const_data_ptr<int32_t>() : nullptr;
    args.from = from.const_data_ptr();
    args.stride = from.stride(0) * element;
    args.bytes = from.size(1) * element;
    args.to = outs.back().mutable_data_ptr();
    run(stays, "compact", [&](cudaStream_t s) { return acn::cuda::compact(args, s); });
  }
  return {outs, count};
}

}  // namespace

void bind_cuda(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.attr("cuda_max_width") = acn::cuda::kMaxWidth;
  m.attr("cuda_max_exit_width") = acn::cuda::kMaxExitWidth;
  m.def("cuda_accumulate_norm", &accumulate_norm, no_gil);
  m.def("cuda_join_forward", &join_forward, no_gil);
  m.def("cuda_exit_head", &exit_head, no_gil);
  m.def("cuda_compact", &compact, no_gil);
}
