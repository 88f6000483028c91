#include "packed_weight.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <cstring>

namespace acn {
namespace {

// From here on the L2 cache does not hold the weight, and ATen's product, which also cuts it in
// blocks, is faster: 0.8 of the time for [3072, 768] and 200 rows.
constexpr int64_t kMostElements = 1 << 20;
constexpr int64_t kValues = 16;  // that are compared, in different rows and columns

std::atomic<int64_t> changes{0};

}  // namespace

void weights_changed() { ++changes; }

std::shared_ptr<const PackedWeight> PackedWeight::of(const at::Tensor& weight) {
  const bool fits = weight.numel() <= kMostElements && tiles_here().size() > 1;
  const bool taken = weight.is_cpu() && weight.scalar_type() == at::kFloat;
  if (!taken || weight.is_inference() || !fits) return nullptr;
  return std::make_shared<const PackedWeight>(weight);
}

std::shared_ptr<const Panels> PackedWeight::panels() const {
  const std::lock_guard<std::mutex> alone(changing_);
  TORCH_CHECK(weight_.sizes() == at::IntArrayRef(shape_), "a weight of shape ",
              at::IntArrayRef(shape_), " has become ", weight_.sizes());
  if (!is_current()) pack();
  return panels_;
}

bool PackedWeight::is_current() const {
  if (!panels_ || weight_._version() != version_ || changes != changes_) return false;
  const float* const now = weight_.const_data_ptr<float>();
  const int64_t outputs = weight_.size(0), inputs = weight_.size(1);
  for (int64_t i = 0; i < kValues; ++i) {
    const int64_t output = (2 * i + 1) * outputs / (2 * kValues);
    const int64_t input = (2 * (i * 7 % kValues) + 1) * inputs / (2 * kValues);
    const float then = (*panels_)(output, input);
    const float* const here = now + output * weight_.stride(0) + input * weight_.stride(1);
    if (std::memcmp(here, &then, sizeof(float)) != 0) return false;  // NaN is as good as any
  }
  return true;
}

void PackedWeight::pack() const {
  // Of what is read: a change may follow at once.
  const int64_t version = weight_._version(), seen = changes;
  const at::Tensor rows = weight_.contiguous();
  panels_ = std::make_shared<const Panels>(rows.const_data_ptr<float>(), rows.size(0),
                                           rows.size(1), tiles_here().front());
  version_ = version;
  changes_ = seen;
}

}  // namespace acn
