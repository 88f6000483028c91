// What samples cost on this machine, measured.
#pragma once

#include "acn/runtime/compaction.h"
#include "acn/runtime/segment.h"

namespace acn {

// Of a few samples of `state` on one thread, through a segment of `layers` layers and into another
// group; of small models that takes milliseconds. The state stays as it is.
SampleCosts measured_costs(const Segment& segment, int64_t layers, const State& state);

}  // namespace acn
