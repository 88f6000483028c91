#include "micro_batch.h"

#include <unistd.h>

#include <algorithm>

namespace acn {
namespace {

constexpr int64_t kUsualCache = 1 << 20;

int64_t layer_elements(const Config& config) {
  int64_t total = 0;
  Config one = config;
  for (const int64_t depth : {1, 0}) {
    one.depth = depth;
    total = (depth ? 1 : -1) * elements_of(tensors_of(one)) + total;
  }
  return total;
}

}  // namespace

int64_t micro_batch_for(const Config& config, int64_t element_size, int64_t cache) {
  const int64_t weights = layer_elements(config) * element_size;
  // Input, normed input and output of a layer in the model's dtype, its hidden values, the sum.
  const int64_t attention = config.family == Family::vit ? 3 * config.width : 0;
  const int64_t hidden = std::max(config.hidden(), attention);
  const int64_t row = (3 * config.width + hidden) * element_size + config.width * 4;
  const int64_t sample = std::max<int64_t>(1, config.tokens() * row);
  return std::max<int64_t>(1, std::max(cache - weights, weights) / sample);
}

int64_t cache_size() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size;
#endif
  return kUsualCache;
}

}  // namespace acn
