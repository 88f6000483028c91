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

// What a State has of (x, mask, y) to the new (x, y), or to x where nothing is summed.
class AotiSegment final : public Segment {
 public:
  // segment-BEGIN-END.pt2 of `folder`. Throws FileError where it is missing, FormatError where it
  // does not load or is for other layers than those of `config` in `dtype`, or of another model.
  AotiSegment(const std::string& folder, const Config& config, at::ScalarType dtype,
              const std::string& model, int64_t begin, int64_t end);

  State run(State state, bool closing) const override;

 private:
  AotiProgram program_;
};

// By the layers [begin, end) that they run.
using Packages = std::map<std::pair<int64_t, int64_t>, std::shared_ptr<const Segment>>;

// The packages segment-BEGIN-END.pt2 in a folder; throws as AotiSegment does.
Packages load_packages(const std::string& folder, const Config& config, at::ScalarType dtype);

}  // namespace acn
