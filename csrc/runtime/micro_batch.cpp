#include "micro_batch.h"

#include <unistd.h>

#include <algorithm>

namespace acn {
namespace {

constexpr int64_t kUsualCache = 1 << 20;
constexpr int64_t kRowsPerProduct = 1024;
constexpr int64_t kSamplesPerThread = 4;  // from here on an uneven split costs less than pieces do

int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The parameters of one layer.
int64_t layer_elements(Config config) {
  // A transformer's, for nobody knows.
  if (config.family == Family::compiled) return 12 * config.width * config.width;
  config.depth = 0;
  const int64_t around = elements_of(tensors_of(config));
  config.depth = 1;
  return elements_of(tensors_of(config)) - around;
}

}  // namespace

int64_t micro_batch_for(const Config& config, int64_t element_size, int64_t cache) {
  const int64_t weights = layer_elements(config) * element_size;
  // Input, normed input and output of a layer in the model's dtype, its hidden values, the sum.
  const int64_t attention = config.family == Family::vit ? 3 * config.width : 0;
  const int64_t hidden = std::max(config.hidden(), attention);
  const int64_t row = (3 * config.width + hidden) * element_size + config.width * 4;
  const int64_t sample = std::max<int64_t>(1, config.tokens() * row);
  const int64_t held = std::max(cache - weights, weights) / sample;
  return std::max(quotient_up(kRowsPerProduct, config.tokens()), held);
}

int64_t group_size(int64_t live, int64_t most, int64_t threads) {
  if (threads > 1 && live < kSamplesPerThread * threads) return std::max<int64_t>(1, live);
  const int64_t groups = quotient_up(quotient_up(live, most), threads) * threads;
  return std::max<int64_t>(1, quotient_up(live, groups));
}

int64_t cache_size() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size;
#endif
  return kUsualCache;
}

}  // namespace acn
