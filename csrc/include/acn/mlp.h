// Two products with the exact GELU between them, in fp32, whose hidden values stay in the cache.
#pragma once

#include "acn/product.h"

namespace acn {

struct ChannelMlp {
  int64_t rows = 0;
  const float* x = nullptr;  // [N, inputs of fc1] without gaps
  Norm norm = Norm::none;    // of the rows, before all else
  Affine<float> affine;
  float eps = 0;
  const Panels* fc1 = nullptr;
  const float* bias1 = nullptr;  // [outputs]; null: none
  const Panels* fc2 = nullptr;
  const float* bias2 = nullptr;
  float* out = nullptr;  // [N, outputs of fc2] without gaps; may be x
};

// out = fc2(gelu(fc1(norm(x)))) for each row
void channel_mlp(const ChannelMlp& args, const ParallelFor& parallel);

struct TokenMlp {
  int64_t samples = 0;
  int64_t tokens = 0;
  int64_t hidden = 0;
  int64_t width = 0;
  const float* x = nullptr;        // [B, T, D] without gaps
  const float* weight1 = nullptr;  // [hidden, T]
  const float* bias1 = nullptr;    // [hidden]
  const float* weight2 = nullptr;  // [T, hidden]
  const float* bias2 = nullptr;    // [T]
  float* out = nullptr;            // [B, T, D] without gaps; may be x
};

// The MLP along the token axis: out[b] = weight2 gelu(weight1 x[b] + bias1) + bias2. The weights
// are on the left: they are read where they lie, and nothing is transposed.
void token_mlp(const TokenMlp& args, const Tiles& tiles, const ParallelFor& parallel);

}  // namespace acn
