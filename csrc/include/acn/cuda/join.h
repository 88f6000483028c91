// join on a GPU: the long sum of any number of terms, with the final norm, each term read once.
#pragma once

#include "acn/cuda/vector.h"

namespace acn::cuda {

// Terms that one kernel adds; where there are more, y carries the sum from one to the next.
constexpr int kTermsPerLaunch = 64;

struct Join {
  int64_t rows = 0;
  int64_t width = 0;
  const Rows* xs = nullptr;  // [terms], in host memory
  int64_t terms = 0;
  const float* scales = nullptr;  // [terms]; null: all one
  float* y = nullptr;  // [N, D]: the sum; may be null where there is no norm and one launch does
  OutRows out;
  float* mean = nullptr;  // [N], layer only; may be null
  float* rstd = nullptr;  // [N]; may be null
  Vector weight;
  Vector bias;
  float eps = 0;
  Norm norm = Norm::none;
};

// out = norm(y) with y = sum_i scales_i * xs_i, added in that order
cudaError_t join(const Join& args, cudaStream_t stream);

}  // namespace acn::cuda
