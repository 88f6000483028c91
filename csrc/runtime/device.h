// The engine on a GPU: what csrc/runtime/cuda holds, where it was built in.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "acn/runtime/engine.h"
#include "exit_ops.h"
#include "model.h"
#include "row_ops.h"

namespace acn::device {

bool built_in();

// Throws std::invalid_argument where the engine does not run on `device`, naming what it takes.
void check(at::Device device);

// Adds x to y, or starts the sum where y is undefined, and returns norm(x); all rows of [B, T, D].
at::Tensor accumulate_norm(const at::Tensor& x, at::Tensor& y, const LayerNorm& norm);

// norm(x) of the rows of x [..., D].
at::Tensor norm(const at::Tensor& x, const LayerNorm& norm, double eps);

// gelu(z + bias) in place of z [B, T, D]; bias is [T], one number for all columns of a token.
void bias_gelu(at::Tensor& z, const at::Tensor& bias);

// norm(z + bias) in place of z, the bias as there.
void bias_norm(at::Tensor& z, const at::Tensor& bias, const LayerNorm& norm);

// Runs batches of one model; many threads may call it.
class Runner {
 public:
  virtual ~Runner() = default;

  // `stops` are those of `options`. Results have room for the batch `input`, which the model's
  // check has passed, and zeros in staying, or none where nobody asks for it.
  virtual void run(const at::Tensor& input, const std::vector<int64_t>& stops,
                   const RunOptions& options, const Results& results) const = 0;

  virtual GraphReport graphs() const = 0;
};

std::unique_ptr<const Runner> runner(const Model& model, at::Device device);

}  // namespace acn::device
