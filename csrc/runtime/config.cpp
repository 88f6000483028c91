#include "acn/runtime/config.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "acn/runtime/errors.h"
#include "acn/runtime/json.h"

namespace acn {
namespace {

// No dimension of a model comes near these, and products of a few stay far from overflow.
constexpr int64_t kLargest = 1 << 24;
constexpr int64_t kDeepest = 1024;
constexpr int64_t kLargestImage = 1 << 15;
constexpr int64_t kLargestState = int64_t{1} << 40;
constexpr int64_t kMostPositions = 1 << 26;  // numbers, which are computed: no file bounds them

// Takes fields out of the object one by one; what was never asked for is foreign.
class Fields {
 public:
  explicit Fields(const Json::Object& object) : object_(object) {}

  const Json& field(const std::string& name) {
    const auto found = object_.find(name);
    if (found == object_.end()) throw FormatError(text("the configuration has no ", name));
    taken_.insert(name);
    return found->second;
  }

  int64_t number(const std::string& name, int64_t least, int64_t most) {
    const int64_t value = field(name).integer(name);
    if (value < least || value > most) {
      throw FormatError(text(name, " is ", value, "; it takes ", least, " to ", most));
    }
    return value;
  }

  std::vector<int64_t> numbers(const std::string& name, int64_t least, int64_t most) {
    std::vector<int64_t> values;
    for (const Json& each : field(name).array(name)) {
      values.push_back(each.integer(name));
      if (values.back() < least || values.back() > most) {
        throw FormatError(text(name, " holds ", values.back(), "; it takes ", least, " to ", most));
      }
    }
    return values;
  }

  const std::string& word(const std::string& name, const std::vector<std::string>& allowed) {
    const std::string& value = field(name).string(name);
    std::string list;
    for (const std::string& one : allowed) {
      if (value == one) return value;
      list += (list.empty() ? "" : ", ") + one;
    }
    throw FormatError(text(name, " is '", value.substr(0, 40), "'; the engine runs ", list));
  }

  // A number from 0 to 1; `otherwise` where the configuration has none.
  double share(const std::string& name, double otherwise) {
    if (!object_.count(name)) return otherwise;
    const double value = field(name).number(name);
    if (!(value >= 0 && value <= 1)) {
      throw FormatError(text(name, " is ", value, "; it takes 0 to 1"));
    }
    return value;
  }

  void end() const {
    for (const auto& [name, value] : object_) {
      if (!taken_.count(name)) {
        throw FormatError(text("the configuration has an unknown field ", name.substr(0, 40)));
      }
    }
  }

 private:
  const Json::Object& object_;
  std::set<std::string> taken_;
};

void check_divides(const char* name, int64_t divisor, const char* of, int64_t value) {
  if (value % divisor != 0) {
    throw FormatError(text(name, " is ", divisor, "; it takes a divisor of ", of, " ", value));
  }
}

// Collects the tensors of modules below a prefix.
class Layout {
 public:
  explicit Layout(std::vector<TensorShape>& into) : into_(into) {}

  void tensor(const std::string& name, std::vector<int64_t> shape) {
    into_.push_back({name, std::move(shape)});
  }

  void linear(const std::string& name, int64_t in, int64_t out) {
    into_.push_back({name + ".weight", {out, in}});
    into_.push_back({name + ".bias", {out}});
  }

  void norm(const std::string& name, int64_t width) {
    into_.push_back({name + ".weight", {width}});
    into_.push_back({name + ".bias", {width}});
  }

  void mlp(const std::string& name, int64_t width, int64_t hidden) {
    linear(name + ".fc1", width, hidden);
    linear(name + ".fc2", hidden, width);
  }

 private:
  std::vector<TensorShape>& into_;
};

void add_block(Layout& layout, const std::string& at, const Config& config) {
  const int64_t width = config.width;
  layout.norm(at + "norm1", width);
  if (config.family != Family::mixer) {
    layout.linear(at + "attn.qkv", width, 3 * width);
    layout.linear(at + "attn.proj", width, width);
    layout.norm(at + "norm2", width);
    layout.mlp(at + "mlp", width, config.mlp_width);
    return;
  }
  layout.mlp(at + "token_mlp", config.tokens(), config.token_mlp);
  layout.norm(at + "norm2", width);
  layout.mlp(at + "channel_mlp", width, config.channel_mlp);
  if (!config.closing) return;
  layout.linear(at + "closing", width, width);
  layout.norm(at + "norm3", width);
}

void add_image_model(Layout& layout, const Config& config) {
  const int64_t patch = config.patch_size;
  layout.tensor("stem.weight", {config.width, config.channels, patch, patch});
  layout.tensor("stem.bias", {config.width});
  if (config.class_token) layout.tensor("cls_token", {config.width});
  for (int64_t i = 0; i < config.depth; ++i) add_block(layout, text("blocks.", i, "."), config);
  layout.norm("blocks.norm", config.width);
  layout.linear("head", config.width, config.classes);
}

void add_text_model(Layout& layout, const Config& config) {
  const std::string embeddings = "bert.embeddings.";
  layout.tensor(embeddings + "word.weight", {config.vocabulary, config.width});
  layout.tensor(embeddings + "position.weight", {config.positions, config.width});
  layout.tensor(embeddings + "token_type.weight", {config.token_kinds, config.width});
  layout.norm(embeddings + "norm", config.width);
  for (int64_t i = 0; i < config.depth; ++i) {
    add_block(layout, text("bert.blocks.", i, "."), config);
  }
  layout.linear("bert.pooler", config.width, config.width);
  layout.linear("classifier", config.width, config.classes);
}

void parse_image_model(Fields& fields, Config& config) {
  config.image_size = fields.number("image_size", 1, kLargestImage);
  config.patch_size = fields.number("patch_size", 1, kLargestImage);
  check_divides("patch_size", config.patch_size, "the image size", config.image_size);
  config.channels = fields.number("channels", 1, kLargest);
  if (config.family == Family::vit) {
    if (config.width % 4 != 0) {
      throw FormatError(text("width is ", config.width, "; positions take a multiple of 4"));
    }
    const int64_t side = config.image_size / config.patch_size;
    if (side * side > kMostPositions / config.width) {
      throw FormatError(text(side * side, " patches of width ", config.width, " are too many; ",
                             "their positions take at most ", kMostPositions, " numbers"));
    }
    config.class_token = fields.word("pool", {"mean", "first"}) == "first";
  } else {
    config.token_mlp = fields.number("token_mlp", 1, kLargest);
    config.channel_mlp = fields.number("channel_mlp", 1, kLargest);
    config.closing = fields.field("closing").boolean("closing");
  }
}

void parse_text_model(Fields& fields, Config& config) {
  config.vocabulary = fields.number("vocabulary", 1, kLargest);
  config.positions = fields.number("positions", 1, kLargest);
  config.token_kinds = fields.number("token_kinds", 1, kLargest);
}

void parse_compiled_model(Fields& fields, Config& config) {
  config.model = fields.field("model").string("model");
  config.input = fields.numbers("input", 1, kLargest);
  elements_of(config.input);
  config.input_dtype = fields.word("input_dtype", {"F32", "BF16", "I64"});
  config.dtype = fields.word("dtype", {"F32", "BF16"});
  config.state = fields.numbers("state", 1, kLargest);
  if (config.state.empty() || elements_of(config.state) > kLargestState) {
    throw FormatError(
        "state is empty or has too many elements; it takes the shape of a sample's x");
  }
  config.width = config.state.back();
  config.stops = fields.numbers("stops", 1, config.depth);
  const bool rising = std::is_sorted(config.stops.begin(), config.stops.end(), std::less_equal<>());
  if (config.stops.empty() || !rising || config.stops.back() != config.depth) {
    throw FormatError(text("stops takes rising depths, the last one ", config.depth));
  }
}

}  // namespace

Config parse_config(std::string_view source) {
  static const std::map<std::string, Family> kFamilies{
      {"vit", Family::vit},
      {"mixer", Family::mixer},
      {"bert", Family::bert},
      {"compiled", Family::compiled}};
  const Json document = Json::parse(source);
  Fields fields(document.object("the configuration"));
  Config config;
  config.family = kFamilies.at(fields.word("family", {"vit", "mixer", "bert", "compiled"}));
  if (config.family == Family::compiled) {
    config.depth = fields.number("depth", 1, kDeepest);
    config.classes = fields.number("classes", 1, kLargest);
    parse_compiled_model(fields, config);
    fields.end();
    return config;
  }
  // One that was trained on its direct gradient alone computes as any other.
  const std::string& wiring = fields.word("wiring", {"acn", "residual", "dg_only"});
  config.alpha = fields.share("alpha", wiring == "residual" ? 0 : 1);
  config.width = fields.number("width", 1, kLargest);
  config.depth = fields.number("depth", 0, kDeepest);
  config.classes = fields.number("classes", 1, kLargest);
  if (config.family != Family::mixer) {
    config.heads = fields.number("heads", 1, kLargest);
    check_divides("heads", config.heads, "the width", config.width);
    config.mlp_width = fields.number("mlp_width", 1, kLargest);
  }
  if (config.family == Family::bert) {
    parse_text_model(fields, config);
  } else {
    parse_image_model(fields, config);
  }
  fields.end();
  return config;
}

int64_t Config::tokens() const {
  switch (family) {
    case Family::bert: return positions;
    case Family::compiled: return elements_of(state) / width;
    default: return patches() + class_token;
  }
}

int64_t Config::hidden() const {
  switch (family) {
    case Family::mixer: return channel_mlp;
    case Family::compiled: return 4 * width;  // a guess: nobody knows what the programs do
    default: return mlp_width;
  }
}

std::vector<TensorShape> tensors_of(const Config& config) {
  std::vector<TensorShape> tensors;
  if (config.family == Family::compiled) return tensors;  // programs hold their own
  Layout layout(tensors);
  (config.family == Family::bert ? add_text_model : add_image_model)(layout, config);
  return tensors;
}

int64_t elements_of(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(product, size, &product)) {
      throw FormatError("a shape is negative or has too many elements");
    }
  }
  return product;
}

int64_t elements_of(const std::vector<TensorShape>& tensors) {
  int64_t total = 0;
  for (const TensorShape& tensor : tensors) {
    if (__builtin_add_overflow(total, elements_of(tensor.shape), &total)) {
      throw FormatError("the model has too many elements");
    }
  }
  return total;
}

}  // namespace acn
