// bias_norm on a GPU: the bias of a product along the token axis and a LayerNorm, in one pass.
#pragma once

#include "acn/cuda/vector.h"

namespace acn::cuda {

struct BiasNorm {
  int64_t samples = 0;
  int64_t tokens = 0;
  int64_t width = 0;
  OutRows z;          // [B, T, D] without gaps
  Vector token_bias;  // [T]
  Vector weight;      // [D] each
  Vector bias;
  float eps = 0;
};

// z = norm(z + token_bias), computed in fp32; a token's columns share its bias: the norm takes it
// away again, unless it is no finite number
cudaError_t bias_norm(const BiasNorm& args, cudaStream_t stream);

}  // namespace acn::cuda
