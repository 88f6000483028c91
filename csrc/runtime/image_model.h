// What lies before the blocks of an image classifier: patches and positions.
#pragma once

#include "acn/runtime/config.h"
#include "native_segment.h"

namespace acn {

class Stem {
 public:
  Stem(const Config& config, const Tensors& weights);

  // x_0 [B, T, D] of images [B, channels, size, size].
  at::Tensor operator()(const at::Tensor& images) const;

 private:
  int64_t patch_;
  at::Tensor weight_;  // [D, channels, patch, patch]
  Linear projection_;  // reads weight_ where that is contiguous; else (channels_last) a copy of it,
                       // which later changes do not reach
  at::Tensor positions_;    // [patches, D]; undefined: none
  at::Tensor class_token_;  // [D]; undefined: none
};

}  // namespace acn
