// The weight of a product and the panels made of it, which follow its values.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <vector>

#include "acn/product.h"

namespace acn {

// Says that weights may have changed in ways that their versions do not tell.
void weights_changed();

// Many threads may share one.
class PackedWeight {
 public:
  // Null where the weight [outputs, inputs] is left to ATen: it is not fp32, or so large that the
  // panels do not pay, or an inference tensor, which counts no changes; or the processor has
  // neither AVX2 nor AVX-512.
  static std::shared_ptr<const PackedWeight> of(const at::Tensor& weight);

  explicit PackedWeight(const at::Tensor& weight)
      : weight_(weight), shape_(weight.sizes().vec()) {}

  // Made at the first call, and anew where the weight has changed: where its version has, or one of
  // a few values, and after weights_changed(). What is written past the version, through `.data`,
  // and leaves those values as they are is not seen. Throws c10::Error where the weight has another
  // shape than at first.
  std::shared_ptr<const Panels> panels() const;

 private:
  bool is_current() const;
  void pack() const;

  at::Tensor weight_;
  std::vector<int64_t> shape_;
  mutable std::mutex changing_;
  mutable std::shared_ptr<const Panels> panels_;
  mutable int64_t version_ = 0;
  mutable int64_t changes_ = 0;  // of all weights, when the panels were made
};

}  // namespace acn
