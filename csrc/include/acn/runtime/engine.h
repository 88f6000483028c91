// Truncated and early-exit inference of a saved or live ACN model, without Python.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "acn/runtime/compaction.h"
#include "acn/runtime/config.h"
#include "acn/runtime/decision.h"
#include "acn/runtime/segment.h"
#include "acn/runtime/weights.h"

namespace acn {

struct RunOptions {
  std::vector<int64_t> exits;  // depths at which samples may leave, from 1 to below the last
  double threshold = 0;
  Criterion criterion = Criterion::entropy;
  int64_t depth = -1;       // layers to run at most; -1: all
  int64_t micro_batch = 0;  // samples that go through a segment together; 0: as the cache holds
  std::optional<SampleCosts> costs;  // what compaction reckons with; none: measured at the first exit
};

struct Result {
  at::Tensor logits;            // [B, classes] in the model's dtype
  at::Tensor depth;             // [B] int64: the layers that each sample went through
  std::vector<int64_t> stops;   // the exits and the last depth
  std::vector<int64_t> counts;  // the samples that left at each
  int64_t undecided = 0;        // samples of NaN logits, which ran to the last depth
};

// Many threads may run one engine at once: a call changes nothing in it that results depend on but
// for the order in which products of other sizes add.
class Engine {
 public:
  // Reads config.json and model.safetensors; FileError, FormatError. With `compiled` also the
  // packages segment-BEGIN-END.pt2 that AOTInductor made of its layers; a folder of the family
  // "compiled" holds nothing else, and takes it. They are programs, no data.
  static Engine from_folder(const std::string& folder, bool compiled = false);

  // The tensors are those of the model's state_dict, shared and not copied. Throws
  // std::invalid_argument where they are not.
  Engine(const Config& config, Tensors weights);
  Engine(Engine&&) noexcept;
  ~Engine();

  const Config& config() const;
  at::ScalarType dtype() const;        // of weights and logits
  at::ScalarType input_dtype() const;  // that of images, int64 of text

  // On the CPU, images [B, channels, size, size] in the model's dtype; of a BERT, int64 tokens
  // [B, 2, T]: words, and 1 or 0 for those that are read or padding; or [B, 3, T] with the kinds of
  // the words; of the family "compiled" what its configuration says. Throws std::invalid_argument on another input or options, naming what is accepted.
  Result run(const at::Tensor& input, const RunOptions& options) const;

  // The samples of a micro-batch where the options name none.
  int64_t default_micro_batch() const;

  size_t compiled_segments() const;

 private:
  struct Parts;
  explicit Engine(std::unique_ptr<const Parts> parts);
  std::unique_ptr<const Parts> parts_;
};

}  // namespace acn
