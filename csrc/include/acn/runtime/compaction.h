// Whether the samples that stay at an exit are packed into groups of their own.
#pragma once

#include <cstdint>

namespace acn {

// Seconds of one sample, on one thread.
struct SampleCosts {
  double layer = 0;  // to go through a layer
  double copy = 0;   // to move its state to another group
};

// Whether it is cheaper to move `live` samples into groups of their own than to leave them in
// groups that hold `held`, of which the others run along for nothing, over the next `layers`.
inline bool packing_pays(const SampleCosts& costs, int64_t live, int64_t held, int64_t layers) {
  const double wasted = static_cast<double>((held - live) * layers) * costs.layer;
  return wasted > static_cast<double>(live) * costs.copy;
}

}  // namespace acn
