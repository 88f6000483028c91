// When the shared head is sure enough of a sample for it to leave.
#pragma once

#include <cstdint>
#include <string>

#include "acn/criterion.h"

namespace acn {

// Throws std::invalid_argument: the criterion has another name ("entropy", "probability",
// "margin"), or the threshold is none for it.
Criterion criterion_of(const std::string& name);
void check_threshold(Criterion criterion, double threshold);

// The threshold that all pass but NaN: that of the last layer.
double passed_by_all(Criterion criterion);

// The number that the criterion compares, of one sample's logits; NaN where they give none.
double certainty(Criterion criterion, const float* logits, int64_t classes);

// NaN never leaves.
inline bool leaves(Criterion criterion, double certainty, double threshold) {
  return criterion == Criterion::entropy ? certainty < threshold : certainty > threshold;
}

}  // namespace acn
