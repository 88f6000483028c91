#include "aoti_segment.h"

#include <array>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "acn/runtime/errors.h"
#include "acn/runtime/weights.h"
#include "checksum.h"

namespace acn {
namespace {

const std::string kPrefix = "segment-", kSuffix = ".pt2";

// BEGIN and END of "segment-BEGIN-END.pt2"; nothing for other names.
std::optional<std::pair<int64_t, int64_t>> layers_of(const std::string& name) {
  if (name.size() <= kPrefix.size() + kSuffix.size() || name.rfind(kPrefix, 0) != 0) return {};
  const char* at = name.data() + kPrefix.size();
  const char* end = name.data() + name.size() - kSuffix.size();
  int64_t first = 0, last = 0;
  const auto begin = std::from_chars(at, end, first);
  if (begin.ec != std::errc() || begin.ptr == end || *begin.ptr != '-') return {};
  const auto stop = std::from_chars(begin.ptr + 1, end, last);
  if (stop.ec != std::errc() || stop.ptr != end || kSuffix != stop.ptr) return {};
  return std::pair(first, last);
}

// Weights, alpha and all else that a segment was compiled with, as a checksum of their files.
std::string model_in(const std::string& folder) {
  uint32_t sum = 0;
  for (const char* name : {"/config.json", "/model.safetensors"}) {
    sum = checksum(folder + name, sum);
  }
  std::array<char, 8> digits{};
  for (size_t i = 0; i < digits.size(); ++i) digits[i] = "0123456789abcdef"[sum >> (28 - 4 * i) & 15];
  return std::string(digits.data(), digits.size());
}

std::string segment_path(const std::string& folder, int64_t begin, int64_t end) {
  return text(folder, "/", kPrefix, begin, "-", end, kSuffix);
}

}  // namespace

AotiSegment::AotiSegment(const std::string& folder, const Config& config, at::ScalarType dtype,
                         const std::string& model, int64_t begin, int64_t end)
    : program_(segment_path(folder, begin, end)) {
  // As acn_kernels.inference.programs writes it.
  program_.check_label(text("layers ", begin, " to ", end, " of ", config.tokens(), " tokens of ",
                            config.width, " ", name_of(dtype), " of model ", model));
}

State AotiSegment::run(State state, bool) const {
  std::vector<at::Tensor> inputs;
  for (const at::Tensor& each : {state.x, state.mask, state.y}) {
    if (each.defined()) inputs.push_back(each);
  }
  std::vector<at::Tensor> outputs = program_.run(inputs, 1, 2);
  State next{std::move(outputs[0]), {}, state.mask};
  if (outputs.size() == 2) next.y = std::move(outputs[1]);
  return next;
}

Packages load_packages(const std::string& folder, const Config& config, at::ScalarType dtype) {
  Packages packages;
  std::string model;  // asked for where there is a segment: it takes a look at every weight
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    const auto layers = layers_of(file.path().filename().string());
    if (!layers) continue;
    const auto [begin, end] = *layers;
    if (begin < 0 || end <= begin || end > config.depth) {
      throw FormatError(text(file.path().string(), " is for layers that a model of ", config.depth,
                             " lacks"));
    }
    if (model.empty()) model = model_in(folder);
    packages[*layers] = std::make_shared<AotiSegment>(folder, config, dtype, model, begin, end);
  }
  return packages;
}

}  // namespace acn
