// A segment that AOTInductor compiled ahead of time: a package beside the weights.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "acn/runtime/config.h"
#include "acn/runtime/segment.h"

namespace acn {

// By the layers [begin, end) that they run.
using Packages = std::map<std::pair<int64_t, int64_t>, std::shared_ptr<const Segment>>;

// The packages segment-BEGIN-END.pt2 in a folder. They are programs: load those alone that come
// from where the weights come from. Throws FormatError where one does not load or is not for
// `config`.
Packages load_packages(const std::string& folder, const Config& config);

}  // namespace acn
