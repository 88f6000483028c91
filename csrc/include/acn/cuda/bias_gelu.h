// bias_gelu on a GPU: the bias of a product along the token axis and the exact GELU, in one pass.
#pragma once

#include "acn/cuda/vector.h"

namespace acn::cuda {

struct BiasGelu {
  int64_t samples = 0;
  int64_t tokens = 0;
  int64_t width = 0;
  OutRows z;    // [B, T, D] without gaps
  Vector bias;  // [T]
};

// z = gelu(z + bias), computed in fp32; a token's columns share its bias
cudaError_t bias_gelu(const BiasGelu& args, cudaStream_t stream);

}  // namespace acn::cuda
