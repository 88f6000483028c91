#include "aoti_segment.h"

#include <charconv>
#include <filesystem>
#include <optional>
#include <vector>

#include "acn/runtime/errors.h"

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

}  // namespace

State AotiSegment::run(State state, bool) const {
  std::vector<at::Tensor> inputs{state.x};
  if (state.y.defined()) inputs.push_back(state.y);
  std::vector<at::Tensor> outputs = program_.run(inputs, 1, 2);
  State next{std::move(outputs[0]), {}, state.mask};
  if (outputs.size() == 2) next.y = std::move(outputs[1]);
  return next;
}

std::string segment_path(const std::string& folder, int64_t begin, int64_t end) {
  return text(folder, "/", kPrefix, begin, "-", end, kSuffix);
}

Packages load_packages(const std::string& folder, const Config& config) {
  Packages packages;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    const auto layers = layers_of(file.path().filename().string());
    if (!layers) continue;
    const std::string path = file.path().string();
    if (layers->first < 0 || layers->second <= layers->first || layers->second > config.depth) {
      throw FormatError(text(path, " is for layers that a model of ", config.depth, " lacks"));
    }
    packages[*layers] = std::make_shared<AotiSegment>(path);
  }
  return packages;
}

}  // namespace acn
