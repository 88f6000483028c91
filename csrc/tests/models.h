// Small random models, and what they must put out: layer by layer in double precision.
#pragma once

#include <string>
#include <vector>

#include "acn/runtime/config.h"
#include "acn/runtime/weights.h"

namespace acn::test {

// config.json's text; "vit", "vit_first", "mixer", "mixer_closing", "bert", or "compiled", which
// has no weights. Five patches a side make odd token counts, 25 or 26.
std::string config_text(const std::string& kind, int64_t depth, double alpha = 1);

Tensors random_weights(const Config& config, at::ScalarType type = at::kFloat);
// Images; of a BERT [B, 3, T] words, mask and kinds, with texts of different lengths.
at::Tensor random_input(const Config& config, int64_t batch);

// A new folder that goes away with the object.
class Folder {
 public:
  Folder();
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string path(const std::string& name = "") const;

 private:
  std::string path_;
};

void write_text(const std::string& path, const std::string& content);
void write_model(const Folder& folder, const std::string& config, const Tensors& weights);

// Logits [depth + 1, B, classes] in double of all sub-networks: no code of the engine's.
at::Tensor logits_by_depth(const Config& config, const Tensors& weights, const at::Tensor& input);

}  // namespace acn::test
