// A batch that goes through the layers segment by segment, on whatever device holds it.
#pragma once

#include <memory>
#include <vector>

#include "acn/runtime/engine.h"
#include "exit_ops.h"
#include "lagged.h"

namespace acn {

class SegmentPass final : public DevicePass {
 public:
  // `stops` are those of `options`; `results` has room for the batch `input`, and zeros in staying.
  SegmentPass(const Model& model, const ExitOps& ops, const at::Tensor& input,
              const std::vector<int64_t>& stops, const RunOptions& options,
              const Results& results);

  void advance(size_t s, int64_t rows) override;
  std::unique_ptr<Count> count(size_t s) override;
  int64_t pack(size_t s, int64_t rows, int64_t most) override;

 private:
  const Model& model_;
  const ExitOps& ops_;
  const std::vector<int64_t>& stops_;
  const RunOptions& options_;
  const Results& results_;
  LiveRows rows_;
  at::Tensor stays_;
};

}  // namespace acn
