// What happens at an exit, on the CPU and one sample after the other: the twin of the GPU's.
#pragma once

#include <ATen/ATen.h>

#include "acn/runtime/decision.h"
#include "exit_ops.h"

namespace acn::test {

class HostExits final : public ExitOps {
 public:
  at::Tensor decide(const Model& model, LiveRows& rows, const Exit& exit,
                    const Results& results) const override {
    const at::Tensor logits = model.logits(rows.state), wide = logits.to(at::kFloat).contiguous();
    const at::Tensor stays = at::zeros({rows.size()}, at::kBool);
    int32_t live = 0;
    for (int64_t row = 0; row < rows.size(); ++row) {
      const int64_t sample = rows.sample[row].item<int32_t>();
      if (sample < 0) continue;
      results.logits[sample].copy_(logits[row]);
      results.depth[sample].fill_(exit.depth);
      const double sure = certainty(exit.criterion, wide[row].data_ptr<float>(), wide.size(1));
      if (leaves(exit.criterion, sure, exit.threshold)) {
        rows.sample[row].fill_(-1);
      } else {
        stays[row].fill_(true);
        ++live;
      }
    }
    results.staying[static_cast<int64_t>(exit.stop)].add_(live);
    return stays;
  }

  // What lies past those that stay is NaN, which must change nothing.
  void pack_into(const LiveRows& to, const LiveRows& rows,
                 const at::Tensor& stays) const override {
    const at::Tensor from = stays.nonzero().flatten();
    const auto move = [&](const at::Tensor& target, const at::Tensor& source, double rest) {
      if (!source.defined()) return;
      target.fill_(rest).narrow(0, 0, from.size(0)).copy_(source.index_select(0, from));
    };
    move(to.state.x, rows.state.x, NAN);
    move(to.state.y, rows.state.y, NAN);
    move(to.state.mask, rows.state.mask, 1);
    move(to.sample, rows.sample, -1);
  }

  std::unique_ptr<Count> read(const at::Tensor& number) const override {
    struct Known final : Count {
      at::Tensor number;
      int64_t wait() override { return number.item<int32_t>(); }
    };
    auto known = std::make_unique<Known>();
    known->number = number.clone();
    return known;
  }
};

}  // namespace acn::test
