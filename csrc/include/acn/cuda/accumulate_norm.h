// accumulate_norm on a GPU: inference's step between two layers, in one pass.
#pragma once

#include "acn/cuda/vector.h"

namespace acn::cuda {

struct AccumulateNorm {
  int64_t rows = 0;
  int64_t width = 0;
  Rows x;
  // The running sum, without gaps: [N, D], or the rows that y_rows names. Null: none; alpha is 1.
  float* y = nullptr;
  RowMap y_rows;       // with a map, alpha is 1
  bool first = false;  // y is written without being read
  const float* scale = nullptr;  // one number; null: one
  float alpha = 1;
  OutRows h;
  Vector weight;
  Vector bias;
  float eps = 0;
  Norm norm = Norm::none;
};

// y += scale * x, h = norm(alpha * x + (1 - alpha) * y)
cudaError_t accumulate_norm(const AccumulateNorm& args, cudaStream_t stream);

}  // namespace acn::cuda
