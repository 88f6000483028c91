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

at::Tensor accumulate_norm(const at::Tensor& x, at::Tensor&, const LayerNorm&) {
  check(x.device());
  return x;
}

void bias_gelu(at::Tensor& z, const at::Tensor&) { check(z.device()); }

void bias_norm(at::Tensor& z, const at::Tensor&, const LayerNorm&) { check(z.device()); }

std::unique_ptr<const Runner> runner(const Model&, at::Device device) {
  check(device);
  return nullptr;
}

#endif

}  // namespace acn::device
