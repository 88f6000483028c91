// A model of programs alone, whatever its blocks are: stem, the segments between the depths that
// it was compiled for, and head.
#include <algorithm>

#include "acn/runtime/errors.h"
#include "aoti_segment.h"
#include "model.h"

namespace acn {
namespace {

using at::Tensor;

std::string written(const std::vector<int64_t>& numbers) {
  std::string result;
  for (const int64_t each : numbers) result += (result.empty() ? "" : ", ") + std::to_string(each);
  return result;
}

// Throws FormatError where the program returned another shape or dtype than its folder says.
void check_output(const AotiProgram& program, const Tensor& output, at::IntArrayRef shape,
                  at::ScalarType dtype) {
  if (output.sizes() != shape || output.scalar_type() != dtype) {
    throw FormatError(text(program.path(), " returns ", output.scalar_type(), " of shape ",
                           output.sizes(), "; the configuration says ", dtype, " ", shape));
  }
}

// Segments behind each other, as one.
class Chain final : public Segment {
 public:
  explicit Chain(std::vector<std::shared_ptr<const Segment>> links) : links_(std::move(links)) {}

  State run(State state, bool closing) const override {
    for (size_t i = 0; i < links_.size(); ++i) {
      state = links_[i]->run(std::move(state), closing && i + 1 == links_.size());
    }
    return state;
  }

 private:
  std::vector<std::shared_ptr<const Segment>> links_;
};

class CompiledModel final : public Model {
 public:
  CompiledModel(const Config& config, const std::string& folder)
      : config_(config),
        input_dtype_(scalar_type_of(config.input_dtype)),
        dtype_(scalar_type_of(config.dtype)),
        stem_(folder + "/stem.pt2"),
        head_(folder + "/head.pt2") {
    stem_.check_label("the stem of model " + config.model);
    head_.check_label("the head of model " + config.model);
    int64_t begin = 0;
    for (const int64_t end : config.stops) {
      links_.push_back(
          std::make_shared<AotiSegment>(folder, config, dtype_, config.model, begin, end));
      begin = end;
    }
  }

  void check(const Tensor& input) const override {
    const std::vector<int64_t>& sample = config_.input;
    if (input.dim() < 1 || input.sizes().slice(1) != at::IntArrayRef(sample)) {
      throw std::invalid_argument(text("inputs has shape ", input.sizes(), "; it takes [batch, ",
                                       written(sample), "]"));
    }
    if (!input.is_cpu() || input.scalar_type() != input_dtype_) {
      throw std::invalid_argument(text("inputs is ", input.scalar_type(), " on ", input.device(),
                                       "; it takes ", input_dtype_, " on cpu"));
    }
  }

  void check_stop(int64_t depth) const override {
    const std::vector<int64_t>& stops = config_.stops;
    if (std::find(stops.begin(), stops.end(), depth) == stops.end()) {
      throw std::invalid_argument(text("exits and depth hold ", depth,
                                       "; this model was compiled for ", written(stops)));
    }
  }

  State embed(const Tensor& input) const override {
    State state{stem_.run({input}, 1, 1)[0], {}, {}};
    std::vector<int64_t> shape{input.size(0)};
    shape.insert(shape.end(), config_.state.begin(), config_.state.end());
    check_output(stem_, state.x, shape, dtype_);
    return state;
  }

  std::shared_ptr<const Segment> segment(int64_t begin, int64_t end) const override {
    std::vector<std::shared_ptr<const Segment>> between;
    int64_t at = 0;
    for (size_t i = 0; i < links_.size(); at = config_.stops[i++]) {
      if (at >= begin && config_.stops[i] <= end) between.push_back(links_[i]);
    }
    return std::make_shared<Chain>(std::move(between));
  }

  Tensor logits(const State& state) const override {
    std::vector<Tensor> inputs{state.x};
    if (state.y.defined()) inputs.push_back(state.y);
    Tensor logits = head_.run(inputs, 1, 1)[0];
    check_output(head_, logits, {state.x.size(0), config_.classes}, dtype_);
    return logits;
  }

 private:
  Config config_;
  at::ScalarType input_dtype_;
  at::ScalarType dtype_;
  AotiProgram stem_;
  AotiProgram head_;
  std::vector<std::shared_ptr<const Segment>> links_;
};

}  // namespace

std::unique_ptr<const Model> compiled_model(const Config& config, const std::string& folder) {
  return std::make_unique<CompiledModel>(config, folder);
}

}  // namespace acn
