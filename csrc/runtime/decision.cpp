#include "acn/runtime/decision.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "acn/runtime/errors.h"

namespace acn {

Criterion criterion_of(const std::string& name) {
  if (name == "entropy") return Criterion::entropy;
  if (name == "probability") return Criterion::probability;
  if (name == "margin") return Criterion::margin;
  throw std::invalid_argument(
      text("criterion is '", name, "'; it takes one of entropy, probability, margin"));
}

void check_threshold(Criterion criterion, double threshold) {
  if (criterion == Criterion::entropy && !(threshold >= 0)) {
    throw std::invalid_argument(
        text("threshold is ", threshold, "; it takes a number of nats, at least 0"));
  }
  if (criterion != Criterion::entropy && !(threshold >= 0 && threshold <= 1)) {
    throw std::invalid_argument(
        text("threshold is ", threshold, "; it takes a number from 0 to 1"));
  }
}

double passed_by_all(Criterion criterion) {
  const double infinity = std::numeric_limits<double>::infinity();
  return criterion == Criterion::entropy ? infinity : -infinity;
}

double certainty(Criterion criterion, const float* logits, int64_t classes) {
  // The two largest; a NaN, which compares with nothing, shows in the sum below.
  double first = -std::numeric_limits<double>::infinity();
  double second = first;
  for (int64_t i = 0; i < classes; ++i) {
    const double value = logits[i];
    second = std::max(second, std::min(first, value));
    first = std::max(first, value);
  }
  double total = 0;
  double weighted = 0;
  for (int64_t i = 0; i < classes; ++i) {
    const double difference = logits[i] - first;
    const double share = std::exp(difference);
    total += share;
    if (share != 0) weighted += share * difference;
  }
  if (criterion == Criterion::entropy) return std::log(total) - weighted / total;
  const double next = criterion == Criterion::margin ? std::exp(second - first) : 0;
  return (1 - next) / total;
}

}  // namespace acn
