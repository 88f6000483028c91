#include "lagged.h"

#include <algorithm>
#include <vector>

namespace acn {
namespace {

// A layer reads and writes about as much as this many copies of its state.
constexpr int64_t kCopiesPerLayer = 8;

}  // namespace

void run_lagged(DevicePass& pass, size_t stops, int64_t rows, int64_t lag) {
  const size_t late = static_cast<size_t>(lag);
  std::vector<std::unique_ptr<Count>> counts(stops);
  int64_t most = rows;
  for (size_t s = 0; s < stops; ++s) {
    pass.advance(s, rows);
    if (s + 1 == stops) return;
    // What would be known too late to be of use, nobody asks for.
    if (s + late + 1 < stops) counts[s] = pass.count(s);
    if (s >= late) most = std::min(most, counts[s - late]->wait());
    if (most == 0) return;
    rows = pass.pack(s, rows, most);
  }
}

bool packing_pays_lagged(int64_t rows, int64_t most, int64_t layers) {
  return (rows - most) * layers * kCopiesPerLayer > most;
}

}  // namespace acn
