// What lies around the blocks of an image classifier: patches and positions before, the head after.
#pragma once

#include "acn/runtime/config.h"
#include "acn/runtime/segment.h"
#include "native_segment.h"

namespace acn {

class Stem {
 public:
  Stem(const Config& config, const Tensors& weights);

  // x_0 [B, T, D] of images [B, channels, size, size].
  at::Tensor operator()(const at::Tensor& images) const;

 private:
  int64_t patch_;
  Linear projection_;
  at::Tensor positions_;    // [patches, D]; undefined: none
  at::Tensor class_token_;  // [D]; undefined: none
};

struct Head {
  Head(const Config& config, const Tensors& weights);

  // Logits [B, classes] of the sum y + x.
  at::Tensor operator()(const State& state) const;

  bool first_row;  // is what the norm reads; else the mean of all normed rows is taken
  LayerNorm norm;
  Linear linear;
};

}  // namespace acn
