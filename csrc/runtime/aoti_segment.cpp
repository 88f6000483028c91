#include "aoti_segment.h"

#include <ATen/Parallel.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <charconv>
#include <filesystem>
#include <optional>
#include <vector>

#include "acn/runtime/errors.h"

namespace acn {
namespace {

using torch::inductor::AOTIModelPackageLoader;

// (x, y) or, of the first layers, x alone to the new (x, y).
class AotiSegment final : public Segment {
 public:
  AotiSegment(const std::string& path, bool first)
      : loader_(path, "model", /*run_single_threaded=*/false,
                static_cast<size_t>(at::get_num_threads())),
        first_(first) {}

  State run(State state, bool) const override {
    std::vector<at::Tensor> inputs{state.x};
    if (!first_) inputs.push_back(state.y);
    std::vector<at::Tensor> outputs = loader_.run(inputs);
    return {outputs.at(0).contiguous(), outputs.at(1).contiguous(), {}};
  }

 private:
  // Its runners are taken from a pool under a lock of its own.
  mutable AOTIModelPackageLoader loader_;
  bool first_;
};

// BEGIN and END of "segment-BEGIN-END.pt2"; nothing for other names.
std::optional<std::pair<int64_t, int64_t>> layers_of(const std::string& name) {
  static const std::string kPrefix = "segment-", kSuffix = ".pt2";
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

Packages load_packages(const std::string& folder, const Config& config) {
  Packages packages;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    const auto layers = layers_of(file.path().filename().string());
    if (!layers) continue;
    const std::string path = file.path().string();
    if (layers->first < 0 || layers->second <= layers->first || layers->second > config.depth) {
      throw FormatError(text(path, " is for layers that a model of ", config.depth, " lacks"));
    }
    try {
      packages[*layers] = std::make_shared<AotiSegment>(path, layers->first == 0);
    } catch (const std::exception& error) {
      throw FormatError(text(path, " does not load: ", std::string(error.what()).substr(0, 200)));
    }
  }
  return packages;
}

}  // namespace acn
