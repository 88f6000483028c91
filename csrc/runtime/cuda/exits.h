// An exit on the GPU: the head's kernel, which decides, and the compaction of the rows that stay.
#pragma once

#include "../exit_ops.h"

namespace acn::device {

class CudaExits final : public ExitOps {
 public:
  at::Tensor decide(const Model& model, LiveRows& rows, const Exit& exit,
                    const Results& results) const override;
  void pack_into(const LiveRows& to, const LiveRows& rows, const at::Tensor& stays) const override;
  std::unique_ptr<Count> read(const at::Tensor& number) const override;
};

// Throws std::invalid_argument where the GPU's kernels do not take the head of `model`.
void check_head(const Model& model);

}  // namespace acn::device
