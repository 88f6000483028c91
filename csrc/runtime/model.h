// What an engine runs: the layers, and what lies before and after them.
#pragma once

#include <memory>
#include <vector>

#include "acn/runtime/config.h"
#include "acn/runtime/segment.h"
#include "acn/runtime/weights.h"

namespace acn {

struct Head;

class Model {
 public:
  virtual ~Model() = default;

  // Throws std::invalid_argument unless `input` is a batch that the model takes.
  virtual void check(const at::Tensor& input) const = 0;

  // Throws std::invalid_argument unless samples may leave, or all stop, at this depth.
  virtual void check_stop(int64_t) const {}

  // x_0 of a batch.
  virtual State embed(const at::Tensor& input) const = 0;

  // The layers from `begin` to before `end`, which live no longer than the model.
  virtual std::shared_ptr<const Segment> segment(int64_t begin, int64_t end) const = 0;

  // Logits [B, classes] of the sum y + x.
  virtual at::Tensor logits(const State& state) const = 0;

  // What logits() does last, and of what; null: none that is known.
  virtual const Head* head() const { return nullptr; }
  virtual State read_by_head(const State& state) const { return state; }

  // The shape of one sample in batches that are captured once for many: it has room for samples of
  // `shape`, and where that ends zeros are padding.
  virtual std::vector<int64_t> roomy(at::IntArrayRef shape) const { return shape.vec(); }
};

std::unique_ptr<const Model> image_model(const Config& config, const Tensors& weights);
std::unique_ptr<const Model> text_model(const Config& config, const Tensors& weights);

// Of the programs in a folder, which hold their weights themselves. Throws FileError, FormatError.
std::unique_ptr<const Model> compiled_model(const Config& config, const std::string& folder);

}  // namespace acn
