#include "device.h"

#include "acn/runtime/errors.h"

namespace acn::device {

void check(at::Device device) {
  if (device.is_cpu() || (device.is_cuda() && built_in())) return;
  throw std::invalid_argument(text("device is ", device, "; this build of the engine takes ",
                                   built_in() ? "cpu or cuda" : "cpu"));
}

#ifndef ACN_WITH_CUDA

bool built_in() { return false; }

namespace {

[[noreturn]] void not_built_in() { throw std::logic_error("this build has no CUDA kernels"); }

}  // namespace

at::Tensor accumulate_norm(const at::Tensor&, at::Tensor&, const LayerNorm&) { not_built_in(); }

at::Tensor norm(const at::Tensor&, const LayerNorm&, double) { not_built_in(); }

void bias_gelu(at::Tensor&, const at::Tensor&) { not_built_in(); }

void bias_norm(at::Tensor&, const at::Tensor&, const LayerNorm&) { not_built_in(); }

std::unique_ptr<const Runner> runner(const Model&, at::Device device) {
  check(device);
  return nullptr;
}

#endif

}  // namespace acn::device
