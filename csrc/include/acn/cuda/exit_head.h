// exit_head on a GPU: the decision whether a sample may leave, x and y read once.
#pragma once

#include "acn/criterion.h"
#include "acn/cuda/vector.h"

namespace acn::cuda {

// [B, T, D] with adjacent elements in each row.
struct Tokens {
  const void* data = nullptr;
  int64_t sample_stride = 0;
  int64_t token_stride = 0;
};

struct ExitHead {
  int64_t samples = 0;
  int64_t tokens = 0;  // that are pooled
  int64_t width = 0;
  int64_t classes = 0;
  Dtype dtype = Dtype::f32;  // of x, weight, bias and logits
  Tokens x;
  Tokens y;                      // fp32; null: no term yet
  const float* scale = nullptr;  // one number; null: one
  Vector norm_weight;
  Vector norm_bias;
  float eps = 0;
  Norm norm = Norm::none;
  const void* weight = nullptr;  // [C, D]
  const void* bias = nullptr;    // [C]; null: none
  Criterion criterion = Criterion::entropy;
  float threshold = 0;
  void* logits = nullptr;      // [B, C]
  float* certainty = nullptr;  // [B], what the criterion compares, of the logits as rounded
  bool* stays = nullptr;       // [B]: the head is not sure enough, as it never is of NaN
  int32_t* live = nullptr;     // how many stay is added to it
  // Of what is left of a batch: the sample of each row, whose place it has in logits and depth.
  // -1 is nobody's row: it is not read and stays false. Becomes -1 where the sample leaves. Null:
  // row b is sample b.
  int32_t* sample = nullptr;
  int64_t* depth = nullptr;  // set to `stop` for every sample here; null: left alone
  int64_t stop = 0;
};

// logits = head(mean over tokens of norm(y + scale * x)), and the decision
cudaError_t exit_head(const ExitHead& args, cudaStream_t stream);

// The same in two parts, between which the caller applies the head: of many classes a library's
// product is the faster one. Both take [B, ...] by row, whatever sample a row holds.

// pooled [B, D] = mean over tokens of norm(y + scale * x), in x's dtype; nobody's rows stay as
// they are
cudaError_t exit_pool(const ExitHead& args, void* pooled, cudaStream_t stream);

// The decision on logits [B, C], which it puts into args.logits.
cudaError_t exit_decision(const ExitHead& args, const void* logits, cudaStream_t stream);

}  // namespace acn::cuda
