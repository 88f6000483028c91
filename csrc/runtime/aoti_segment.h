// Segments that AOTInductor compiled ahead of time: packages beside the weights, or alone.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "acn/runtime/config.h"
#include "acn/runtime/segment.h"
#include "aoti_program.h"

namespace acn {

// (x, y), or x alone where nothing is summed yet, to the new (x, y); or x where nothing ever is.
class AotiSegment final : public Segment {
 public:
  explicit AotiSegment(const std::string& path) : program_(path) {}

  State run(State state, bool closing) const override;

 private:
  AotiProgram program_;
};

// By the layers [begin, end) that they run.
using Packages = std::map<std::pair<int64_t, int64_t>, std::shared_ptr<const Segment>>;

std::string segment_path(const std::string& folder, int64_t begin, int64_t end);

// The packages segment-BEGIN-END.pt2 in a folder. Throws FormatError where one does not load or is
// not for `config`.
Packages load_packages(const std::string& folder, const Config& config);

}  // namespace acn
