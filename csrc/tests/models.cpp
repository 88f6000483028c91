#include "models.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "acn/runtime/errors.h"
#include "acn/runtime/safetensors.h"

namespace acn::test {
namespace {

using at::Tensor;

class Reference {
 public:
  Reference(const Config& config, const Tensors& weights) : config_(config) {
    for (const auto& [name, tensor] : weights) weights_[name] = tensor.to(at::kDouble);
  }

  Tensor logits(const Tensor& input) const {
    const bool bert = config_.family == Family::bert;
    const std::string blocks = bert ? "bert.blocks." : "blocks.";
    const Tensor read = bert ? input.select(1, 1).view({-1, 1, 1, input.size(2)}) : Tensor();
    Tensor x = bert ? embed_text(input) : embed(input.to(at::kDouble));
    Tensor sum = x;
    std::vector<Tensor> all{head(sum)};
    const double alpha = config_.alpha;
    for (int64_t i = 0; i < config_.depth; ++i) {
      const Tensor u = bert ? x : alpha * x + (1 - alpha) * sum;
      const Tensor before = bert ? alpha * sum : sum;
      x = block(blocks + std::to_string(i) + ".", u, read);
      all.push_back(head(before + x));
      sum = sum + x;
    }
    return at::stack(all);
  }

 private:
  const Tensor& at(const std::string& name) const { return weights_.at(name); }

  Tensor linear(const Tensor& x, const std::string& name) const {
    return at::matmul(x, at(name + ".weight").t()) + at(name + ".bias");
  }

  Tensor norm(const Tensor& x, const std::string& name) const {
    const double eps = config_.family == Family::bert ? 1e-12 : 1e-5;
    return at::layer_norm(x, {config_.width}, at(name + ".weight"), at(name + ".bias"), eps);
  }

  Tensor mlp(const Tensor& x, const std::string& name) const {
    return linear(at::gelu(linear(x, name + ".fc1")), name + ".fc2");
  }

  Tensor embed(const Tensor& images) const {
    Tensor x = at::conv2d(images, at("stem.weight"), at("stem.bias"), config_.patch_size);
    x = x.flatten(2).transpose(1, 2);
    if (config_.family == Family::mixer) return x;
    x = x + positions();
    if (!config_.class_token) return x;
    return at::cat({at("cls_token").expand({x.size(0), 1, -1}), x}, 1);
  }

  Tensor embed_text(const Tensor& input) const {
    const Tensor words = input.select(1, 0);
    const Tensor kinds = input.size(1) == 3 ? input.select(1, 2) : at::zeros_like(words);
    const std::string from = "bert.embeddings.";
    const Tensor x = at(from + "word.weight").index({words}) +
                     at(from + "token_type.weight").index({kinds}) +
                     at(from + "position.weight").slice(0, 0, input.size(2));
    return norm(x, from + "norm");
  }

  Tensor positions() const {
    const int64_t side = config_.image_size / config_.patch_size, quarter = config_.width / 4;
    Tensor table = at::empty({side * side, config_.width}, at::kDouble);
    for (int64_t place = 0; place < side * side; ++place) {
      for (int64_t k = 0; k < quarter; ++k) {
        const double omega =
            std::pow(10000.0, -static_cast<double>(k) / std::max<int64_t>(quarter - 1, 1));
        const double x = static_cast<double>(place % side) * omega;
        const double y = static_cast<double>(place / side) * omega;
        const double values[] = {std::sin(x), std::cos(x), std::sin(y), std::cos(y)};
        for (int64_t part = 0; part < 4; ++part) table[place][part * quarter + k] = values[part];
      }
    }
    return table;
  }

  // `read` [B, 1, 1, T] is 0 where a token is padding; undefined: all are read.
  Tensor attention(const Tensor& x, const std::string& name, const Tensor& read = {}) const {
    const int64_t batch = x.size(0), tokens = x.size(1), size = config_.width / config_.heads;
    const Tensor qkv = linear(x, name + ".qkv").view({batch, tokens, 3, config_.heads, size});
    const auto part = [&](int64_t i) { return qkv.select(2, i).transpose(1, 2); };
    Tensor scores = at::matmul(part(0), part(1).transpose(2, 3)) / std::sqrt(size);
    if (read.defined()) scores = scores.masked_fill(read.eq(0), -INFINITY);
    const Tensor mixed = at::matmul(scores.softmax(-1), part(2));
    return linear(mixed.transpose(1, 2).reshape({batch, tokens, config_.width}), name + ".proj");
  }

  Tensor block(const std::string& name, const Tensor& u, const Tensor& read) const {
    const double around = 1 - config_.alpha;
    if (config_.family == Family::bert) {
      const Tensor h = norm(attention(u, name + "attn", read) + around * u, name + "norm1");
      return norm(mlp(h, name + "mlp") + around * h, name + "norm2");
    }
    const bool vit = config_.family == Family::vit;
    const Tensor in = norm(u, name + "norm1");
    const Tensor h = vit ? attention(in, name + "attn")
                         : mlp(in.transpose(1, 2), name + "token_mlp").transpose(1, 2);
    const Tensor second = norm(h + around * u, name + "norm2");
    const Tensor out = mlp(second, name + (vit ? "mlp" : "channel_mlp")) + around * h;
    if (!config_.closing) return out;
    return norm(at::relu(linear(out, name + "closing") + u), name + "norm3");
  }

  Tensor head(const Tensor& y) const {
    if (config_.family == Family::bert) {
      return linear(linear(y.select(1, 0), "bert.pooler").tanh(), "classifier");
    }
    const Tensor normed = norm(y, "blocks.norm");
    return linear(config_.class_token ? normed.select(1, 0) : normed.mean(1), "head");
  }

  Config config_;
  Tensors weights_;
};

}  // namespace

std::string config_text(const std::string& kind, int64_t depth, double alpha) {
  if (kind == "compiled") {
    return text(R"({"family": "compiled", "model": "0123abcd", "classes": 7, "input": [3, 10, 10], )",
                R"("input_dtype": "F32", "dtype": "F32", "state": [25, 24], "stops": [1, )", depth,
                R"(], "depth": )", depth, "}");
  }
  const std::string wiring = alpha == 0 ? "\"residual\"" : "\"acn\"";
  const std::string between = alpha == 0 || alpha == 1 ? "" : text(R"("alpha": )", alpha, ", ");
  const std::string every = text(R"("width": 24, "classes": 7, "wiring": )", wiring, ", ", between,
                                 R"("depth": )", depth);
  if (kind == "bert") {
    return text(R"({"family": "bert", "vocabulary": 50, "positions": 12, "token_kinds": 2, )",
                R"("heads": 3, "mlp_width": 40, )", every, "}");
  }
  const std::string common =
      text(R"("image_size": 10, "patch_size": 2, "channels": 3, )", every);
  if (kind == "vit" || kind == "vit_first") {
    const char* pool = kind == "vit" ? "mean" : "first";
    return text("{\"family\": \"vit\", ", common, ", \"heads\": 3, \"mlp_width\": 40, \"pool\": \"",
                pool, "\"}");
  }
  return text("{\"family\": \"mixer\", ", common, ", \"token_mlp\": 10, \"channel_mlp\": 40, ",
              "\"closing\": ", kind == "mixer_closing" ? "true" : "false", "}");
}

Tensors random_weights(const Config& config, at::ScalarType type) {
  Tensors weights;
  for (const auto& [name, shape] : tensors_of(config)) {
    const double fan_in = shape.size() > 1 ? static_cast<double>(elements_of(shape)) / shape[0] : 4;
    Tensor weight = at::randn(shape) / std::sqrt(fan_in);
    if (name.find("norm") != std::string::npos && name.find("weight") != std::string::npos) {
      weight = weight + 1;
    }
    if (name == "head.weight" || name == "classifier.weight") weight = weight * 4;
    weights[name] = weight.to(type);
  }
  return weights;
}

Tensor random_input(const Config& config, int64_t batch) {
  if (config.family == Family::bert) {
    const int64_t tokens = config.positions - 1;
    const Tensor words = at::randint(config.vocabulary, {batch, tokens}, at::kLong);
    const Tensor read = at::arange(tokens) < at::randint(1, tokens + 1, {batch, 1}, at::kLong);
    return at::stack({words, read.to(at::kLong), at::randint(2, {batch, tokens}, at::kLong)}, 1);
  }
  return at::randn({batch, config.channels, config.image_size, config.image_size});
}

Folder::Folder() {
  std::string name = (std::filesystem::temp_directory_path() / "acn-test-XXXXXX").string();
  if (!mkdtemp(name.data())) throw FileError("no temporary folder");
  path_ = name;
}

Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string Folder::path(const std::string& name) const {
  return name.empty() ? path_ : path_ + "/" + name;
}

void write_text(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

void write_model(const Folder& folder, const std::string& config, const Tensors& weights) {
  write_text(folder.path("config.json"), config);
  std::vector<TensorBytes> tensors;
  for (const auto& [name, tensor] : weights) {
    tensors.push_back({name, name_of(tensor.scalar_type()), tensor.sizes().vec(),
                       tensor.const_data_ptr(), static_cast<int64_t>(tensor.nbytes())});
  }
  write_safetensors(folder.path("model.safetensors"), tensors);
}

Tensor logits_by_depth(const Config& config, const Tensors& weights, const Tensor& input) {
  return Reference(config, weights).logits(input);
}

}  // namespace acn::test
