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

// How small batches run on a GPU: from CUDA graphs, captured when a batch of a size, with these
// stops, this criterion and threshold, comes for the second time.
enum class Graphs {
  automatic,  // the best of the following that works here
  off,        // layer by layer, as large batches do
  steps,      // a graph for the layers between two stops; the host picks those of the right size
  whole,      // one graph, in which the device picks: no host waits before the end
};

struct RunOptions {
  std::vector<int64_t> exits;  // depths at which samples may leave, from 1 to below the last
  double threshold = 0;
  Criterion criterion = Criterion::entropy;
  int64_t depth = -1;       // layers to run at most; -1: all
  int64_t micro_batch = 0;  // samples that go through a segment together; 0: as the cache holds
  std::optional<SampleCosts> costs;  // what compaction on the CPU reckons with; none: measured once
  // On a GPU alone, where a batch goes through the layers in one piece:
  bool counts = true;  // to read them waits for the device; false: they and undecided are left out
  int64_t lag = 1;     // exits later at which the host learns how many samples stay; 0: it waits
  Graphs graphs = Graphs::automatic;  // another one throws std::runtime_error where it cannot be
};

// Of an engine on a GPU.
struct GraphReport {
  int64_t captured = 0;  // batches captured so far
  int64_t held = 0;      // those that are kept: the ones used last
  std::string obstacle;  // why there are none, or none that run whole; empty: nothing is known
};

// On the device of the weights.
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
  // "compiled" holds nothing else, and takes it. They are programs, for the CPU. Throws
  // std::invalid_argument where the engine does not run on `device`.
  static Engine from_folder(const std::string& folder, bool compiled = false,
                            at::Device device = at::kCPU);

  // The tensors are those of the model's state_dict, shared and not copied. Throws
  // std::invalid_argument where they are not.
  Engine(const Config& config, Tensors weights);
  Engine(Engine&&) noexcept;
  ~Engine();

  const Config& config() const;
  at::ScalarType dtype() const;        // of weights and logits
  at::ScalarType input_dtype() const;  // that of images, int64 of text

  // Images [B, channels, size, size] in the model's dtype on its device; of a BERT, int64 tokens
  // [B, 2, T]: words, and 1 or 0 for those that are read or padding; or [B, 3, T] with the kinds of
  // the words; of the family "compiled" what its configuration says. Throws std::invalid_argument
  // on another input or options, naming what is accepted; but numbers of a text on a GPU that are
  // out of range, which the host does not see, give NaN logits.
  Result run(const at::Tensor& input, const RunOptions& options) const;

  // The samples of a micro-batch where the options name none.
  int64_t default_micro_batch() const;

  size_t compiled_segments() const;

  at::Device device() const;
  GraphReport graphs() const;

 private:
  struct Parts;
  explicit Engine(std::unique_ptr<const Parts> parts);
  std::unique_ptr<const Parts> parts_;
};

}  // namespace acn
