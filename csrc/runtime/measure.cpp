#include "measure.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "plain_operations.h"
#include "regroup.h"

namespace acn {
namespace {

constexpr int64_t kRows = 256;  // what a matrix product takes to run at its speed
constexpr int kRounds = 3;      // the least counts: the first finds nothing in the caches
constexpr double kLongRound = 2e-3;  // seconds after which there is no other

template <class Body>
double seconds(const Body& body) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRounds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    least = std::min(least, taken.count());
    if (taken.count() > kLongRound) break;
  }
  return least;
}

}  // namespace

SampleCosts measured_costs(const Segment& segment, int64_t layers, const State& state) {
  const int64_t held = state.x.size(0), rows = state.x.numel() / state.x.size(-1) / held;
  const int64_t samples = std::clamp<int64_t>(kRows / rows, 1, held);
  SampleCosts costs;
  // In a parallel region, as groups run: each on a thread of its own.
  at::parallel_for(0, 2, 1, [&](int64_t begin, int64_t) {
    if (begin != 0) return;
    const PlainOperations plain;  // of this thread
    State few;
    costs.copy = seconds([&] { few = first_samples(state, samples); }) / samples;
    const double copying = costs.copy * samples;
    const double both = seconds([&] { segment.run(first_samples(few, samples), false); });
    costs.layer = std::max(both - copying, 0.0) / static_cast<double>(samples * layers);
  });
  return costs;
}

}  // namespace acn
