// Panels follow their weight's values.
#include "packed_weight.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <limits>

#include "check.h"

using namespace acn;

namespace {

bool holds(const Panels& panels, const at::Tensor& weight) {
  for (int64_t n = 0; n < weight.size(0); ++n) {
    for (int64_t k = 0; k < weight.size(1); ++k) {
      if (panels(n, k) != weight[n][k].item<float>()) return false;
    }
  }
  return true;
}

}  // namespace

TEST(they_are_kept_while_nothing_changes) {
  const PackedWeight packed(at::randn({40, 30}));
  EXPECT(packed.panels() == packed.panels());
}

TEST(writing_in_place_makes_new_ones) {
  const at::Tensor weight = at::randn({40, 30});
  const PackedWeight packed(weight.detach());  // as the tensors of a live model are
  const auto before = packed.panels();
  EXPECT(holds(*before, weight));
  weight[39].add_(1);
  const auto after = packed.panels();
  EXPECT(after != before && holds(*after, weight));
  EXPECT(packed.panels() == after);
}

TEST(writing_past_the_version_is_noticed_by_the_values) {
  at::Tensor weight = at::randn({40, 30});
  const PackedWeight packed(weight);
  packed.panels();
  const int64_t version = weight._version();
  weight.variable_data().mul_(1.5);
  EXPECT(weight._version() == version);
  EXPECT(holds(*packed.panels(), weight));
}

TEST(a_weight_without_numbers_is_kept_too) {
  at::Tensor weight = at::full({40, 30}, std::numeric_limits<float>::quiet_NaN());
  const PackedWeight packed(weight);
  EXPECT(packed.panels() == packed.panels());
}

TEST(any_strides) {
  const at::Tensor weight = at::randn({30, 40}).t();
  const PackedWeight packed(weight);
  EXPECT(holds(*packed.panels(), weight));
  EXPECT(packed.panels() == packed.panels());
}

TEST(another_shape_is_refused_until_it_is_the_old_one) {
  at::Tensor weight = at::randn({40, 30});
  const PackedWeight packed(weight);
  packed.panels();
  weight.resize_({1, 1});
  EXPECT_THROWS(c10::Error, "[40, 30]", packed.panels());
  weight.resize_({40, 30}).normal_();
  EXPECT(holds(*packed.panels(), weight));
}

TEST(what_is_not_packed) {
  EXPECT(!PackedWeight::of(at::randn({4, 3}).to(at::kBFloat16)));
  EXPECT(!PackedWeight::of(at::empty({3072, 768})));
  const bool fast = tiles_here().size() > 1;
  EXPECT(static_cast<bool>(PackedWeight::of(at::randn({4, 3}))) == fast);
  const c10::InferenceMode no_versions;
  EXPECT(!PackedWeight::of(at::randn({4, 3})));
}

TEST_MAIN()
