#include "micro_batch.h"

#include <ATen/ATen.h>

#include <chrono>
#include <thread>

#include "acn/runtime/errors.h"
#include "check.h"
#include "measure.h"
#include "models.h"
#include "regroup.h"

using namespace acn;

TEST(sizes_of_known_models) {
  Config mixer = parse_config(test::config_text("mixer", 2));
  mixer.image_size = 32;
  mixer.patch_size = 4;
  mixer.width = 128;
  mixer.token_mlp = 64;
  mixer.channel_mlp = 512;
  EXPECT(micro_batch_for(mixer, 4, 1 << 20) == 16);   // rows for a product
  EXPECT(micro_batch_for(mixer, 4, 16 << 20) > 60);   // what the cache holds
  EXPECT(micro_batch_for(mixer, 2, 16 << 20) > 100);  // half the bytes
  Config vit = parse_config(test::config_text("vit", 2));
  vit.image_size = 224;
  vit.patch_size = 16;
  vit.width = 768;
  vit.heads = 12;
  vit.mlp_width = 3072;
  EXPECT(micro_batch_for(vit, 4, 1 << 20) == 6);
  EXPECT(cache_size() > 0);
}

TEST(groups_share_the_threads) {
  EXPECT(group_size(33, 16, 2) == 9);     // 4 groups, not 3
  EXPECT(group_size(16, 16, 2) == 8);
  EXPECT(group_size(1000, 16, 1) == 16);
  EXPECT(group_size(1, 16, 1) == 1);
  EXPECT(group_size(32, 16, 8) == 4);
  EXPECT(group_size(31, 16, 8) == 31);    // one group, of which each thread takes a piece
  EXPECT(group_size(7, 16, 2) == 7);
  for (int64_t live = 1; live < 200; ++live) {
    for (const int64_t threads : {1, 2, 3, 16}) {
      const int64_t size = group_size(live, 16, threads);
      EXPECT(size >= 1 && (size <= 16 || size == live));
    }
  }
}

TEST(packing_keeps_the_order) {
  at::Tensor x = test::random_input(parse_config(test::config_text("vit", 1)), 9);
  Survivors first{{x.narrow(0, 0, 5).clone(), {}, {}}, {0, 2, 3}, {0, 2, 3}};
  Survivors none{};
  Survivors last{{x.narrow(0, 5, 4).clone(), {}, {}}, {0, 1, 2, 3}, {5, 6, 7, 8}};
  const std::vector<int64_t> expected{0, 2, 3, 5, 6, 7, 8};
  for (int64_t size = 1; size <= 8; ++size) {
    std::vector<int64_t> order;
    for (const Group& group : packed({first, none, last}, size)) {
      EXPECT(static_cast<int64_t>(group.samples().size()) <= size);
      const auto [state, rows] = group.gather();
      EXPECT(!state.y.defined());
      for (size_t i = 0; i < group.samples().size(); ++i) {
        EXPECT(state.x[rows[i]].equal(x[group.samples()[i]]));
        order.push_back(group.samples()[i]);
      }
    }
    EXPECT(order == expected);
  }
}

TEST(a_whole_group_is_not_copied) {
  at::Tensor x = test::random_input(parse_config(test::config_text("vit", 1)), 3);
  Survivors all{{x, {}, {}}, {0, 1, 2}, {4, 5, 6}};
  const std::vector<Group> groups = packed({all}, 8);
  EXPECT(groups.size() == 1 && groups[0].gather().state.x.is_same(x));
}

TEST(unmoved_groups_hold_those_that_left) {
  at::Tensor x = test::random_input(parse_config(test::config_text("vit", 1)), 5);
  Survivors some{{x, {}, {}}, {1, 4}, {7, 9}};
  const std::vector<Group> groups = unmoved({Survivors{}, some, Survivors{}});
  EXPECT(groups.size() == 1);
  const auto [state, rows] = groups[0].gather();
  EXPECT(state.x.is_same(x) && rows == some.rows && groups[0].samples() == some.samples);
}

TEST(packing_pays_where_those_that_left_cost_more_than_moving_the_rest) {
  const SampleCosts costs{.layer = 1e-3, .copy = 1e-4};
  EXPECT(packing_pays(costs, 5, 10, 1));
  EXPECT(!packing_pays(costs, 99, 100, 1));  // 1 ms is wasted, 9.9 ms of copies would be
  EXPECT(packing_pays(costs, 99, 100, 10));
  EXPECT(!packing_pays(costs, 10, 10, 100));
  EXPECT(!packing_pays({.layer = 0, .copy = 1e-9}, 1, 100, 1));
}

TEST(first_samples_are_copies) {
  const at::Tensor x = at::randn({3, 2, 4}), y = at::randn({3, 1, 4});
  const State few = first_samples({x, y, {}}, 2);
  EXPECT(few.x.equal(x.narrow(0, 0, 2)) && few.y.equal(y.narrow(0, 0, 2)));
  EXPECT(!few.mask.defined() && few.x.data_ptr() != x.data_ptr());
}

class Sleeping final : public Segment {
 public:
  State run(State state, bool) const override {
    std::this_thread::sleep_for(std::chrono::milliseconds(state.x.size(0)));
    state.y.add_(1);
    return state;
  }
};

TEST(costs_are_those_of_one_sample_and_one_layer) {
  const State state{at::zeros({3, 64, 8}), at::zeros({3, 64, 8}), {}};
  const SampleCosts costs = measured_costs(Sleeping(), 4, state);
  EXPECT(costs.layer > 0.1e-3 && costs.layer < 1);  // it sleeps a millisecond for four layers
  EXPECT(costs.copy > 0);
  EXPECT(state.y.eq(0).all().item<bool>());
}

TEST_MAIN()
