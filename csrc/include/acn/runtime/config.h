// The configuration of a saved model, and what tensors belong to it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace acn {

enum class Family { vit, mixer, bert, compiled };

// As acn_kernels.models.ViTConfig and MixerConfig write it, and acn_kernels.inference.export of a
// BERT, or of programs for whatever blocks; what the other families have is zero.
struct Config {
  Family family = Family::vit;
  double alpha = 1;  // of the wiring: 1 is the ACN, 0 the residual network
  int64_t image_size = 0;
  int64_t patch_size = 0;
  int64_t channels = 0;
  int64_t width = 0;
  int64_t depth = 0;
  int64_t classes = 0;
  // ViT and BERT
  int64_t heads = 0;
  int64_t mlp_width = 0;
  // ViT
  bool class_token = false;  // pool is "first"
  // BERT
  int64_t vocabulary = 0;
  int64_t positions = 0;    // the longest text
  int64_t token_kinds = 0;  // token types
  // Mixer
  int64_t token_mlp = 0;
  int64_t channel_mlp = 0;
  bool closing = false;
  // compiled
  std::string model;           // which its programs name, too
  std::vector<int64_t> input;  // shape of one sample
  std::string input_dtype;     // as safetensors names it
  std::string dtype;           // of x and of the logits
  std::vector<int64_t> state;  // shape of one sample's x, D last
  std::vector<int64_t> stops;  // depths at which its programs end, rising, the last one the depth

  int64_t patches() const { return image_size / patch_size * (image_size / patch_size); }
  int64_t tokens() const;
  int64_t hidden() const;  // the most values that a layer makes of a token
};

// Throws FormatError where `source` is no configuration of a model that the engine runs: another
// family or wiring, a field too many or too few, or a number that is out of range or does not fit
// the others.
Config parse_config(std::string_view source);

struct TensorShape {
  std::string name;
  std::vector<int64_t> shape;
};

// The tensors of the model, by name, as its state_dict() has them.
std::vector<TensorShape> tensors_of(const Config& config);

// Their elements, and the product of a shape; throws FormatError where int64 cannot hold it.
int64_t elements_of(const std::vector<int64_t>& shape);
int64_t elements_of(const std::vector<TensorShape>& tensors);

}  // namespace acn
