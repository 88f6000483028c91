// The package's own blocks on the matrix products and the row-wise kernels.
#pragma once

#include <memory>
#include <vector>

#include "acn/runtime/config.h"
#include "acn/runtime/segment.h"
#include "acn/runtime/weights.h"
#include "linear.h"
#include "row_ops.h"

namespace acn {

class Block {
 public:
  Block(LayerNorm entry, double alpha) : entry_(std::move(entry)), around_(1 - alpha) {}
  virtual ~Block() = default;

  const LayerNorm& entry() const { return entry_; }

  // The block's output; `h` is its normed input u. With `first_row`, [B, 1, D] for the first token.
  virtual at::Tensor run(at::Tensor h, const at::Tensor& u, bool first_row) const = 0;

 protected:
  // The second half, on rows of h and u: m = mlp(norm(h + (1 - alpha) u)), and m + (1 - alpha) h.
  at::Tensor within(const at::Tensor& h, const at::Tensor& u, const LayerNorm& norm,
                    const Mlp& mlp) const;

 private:
  LayerNorm entry_;
  double around_;  // the share 1 - alpha of its input that goes around each half
};

using Blocks = std::vector<std::shared_ptr<const Block>>;

Blocks blocks_of(const Config& config, const Tensors& weights);
LayerNorm norm_at(const Tensors& weights, const std::string& name);

class NativeSegment final : public Segment {
 public:
  // The blocks from `begin` to before `end`, which must outlive the segment.
  NativeSegment(const Blocks& blocks, int64_t begin, int64_t end, double alpha, bool first_row)
      : blocks_(blocks), begin_(begin), end_(end), alpha_(alpha), first_row_(first_row) {}

  State run(State state, bool closing) const override;

 private:
  const Blocks& blocks_;
  int64_t begin_;
  int64_t end_;
  double alpha_;
  bool first_row_;  // the head reads the first token alone
};

}  // namespace acn
