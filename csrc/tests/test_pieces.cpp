// One product on several threads = the product on one, and the kernels behind it.
#include "pieces.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "acn/product.h"
#include "acn/runtime/engine.h"
#include "check.h"
#include "models.h"
#include "row_ops.h"

using namespace acn;

namespace {

struct Threads {
  explicit Threads(int count) : before(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before); }
  int before;
};

}  // namespace

TEST(pieces_make_up_the_whole) {
  const c10::InferenceMode no_autograd;
  const at::Tensor x = at::randn({3, 70, 50});
  for (const int count : {1, 2, 4}) {
    const Threads threads(count);
    for (const int64_t axis : {0, 1, 2}) {
      const at::Tensor out = in_pieces(x, axis, 10, [&](const at::Tensor& slice, int64_t begin) {
        EXPECT(slice.equal(x.slice(axis, begin, begin + slice.size(axis))));
        return slice.mul(2);
      });
      EXPECT(out.equal(x.mul(2)));
    }
    const at::Tensor total = sum_of_pieces(70, 10, [&](int64_t begin, int64_t end) {
      EXPECT(end - begin >= 10);
      return at::arange(begin, end).sum();
    });
    EXPECT(total.item<int64_t>() == 70 * 69 / 2);
  }
}

TEST(a_thread_of_a_parallel_region_works_alone) {
  const Threads threads(4);
  at::parallel_for(0, 4, 1, [](int64_t begin, int64_t end) {
    // Under the thread sanitizer loops run on their caller's thread: there is no region.
    if (!at::in_parallel_region()) return;
    for (int64_t i = begin; i < end; ++i) {
      int64_t calls = 0;
      sum_of_pieces(100, 1, [&](int64_t from, int64_t to) {
        EXPECT(from == 0 && to == 100);
        ++calls;
        return at::zeros({1});
      });
      EXPECT(calls == 1);
    }
  });
}

TEST(few_samples_on_many_threads_give_the_same_logits) {
  for (const std::string kind : {"vit", "vit_first", "mixer", "mixer_closing"}) {
    const Config config = parse_config(test::config_text(kind, 3));
    const Engine engine(config, test::random_weights(config));
    for (const int64_t batch : {1, 2, 7, 15}) {
      const at::Tensor images = test::random_input(config, batch);
      at::Tensor alone;
      {
        const Threads threads(1);
        alone = engine.run(images, {}).logits;
      }
      const Threads threads(4);
      const at::Tensor together = engine.run(images, {}).logits;
      EXPECT(at::allclose(alone, together, 1e-4, 1e-4));
      const bool packed = config.family == Family::mixer && tiles_here().size() > 1;
      EXPECT(!packed || alone.equal(together));
      EXPECT(together.equal(engine.run(images, {}).logits));
    }
  }
}

TEST(gelu_is_exact_to_rounding) {
  const at::Tensor bias = at::randn({33});
  const at::Tensor z = at::cat({at::linspace(-12, 12, 33 * 700), at::randn({33 * 7}).mul(1e4)});
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor given = z.view({-1, 33}).to(type);
    for (const at::Tensor& each : {bias, at::Tensor()}) {
      at::Tensor x = given.clone();
      bias_gelu(x, each);
      const at::Tensor v = given.to(at::kDouble) + (each.defined() ? each : at::zeros({33}));
      const at::Tensor truth = v * 0.5 * (1 + at::erf(v / std::sqrt(2.0)));
      const double rounding = type == at::kFloat ? 2e-6 : 1.0 / 256;
      EXPECT(at::allclose(x.to(at::kDouble), truth, rounding, rounding));
    }
  }
}

TEST(gelu_of_what_is_no_number) {
  const float infinity = std::numeric_limits<float>::infinity();
  at::Tensor x = at::tensor({infinity, std::nanf(""), 3e38f, -3e38f, 0.0f}).view({1, 5});
  bias_gelu(x, {});
  const float* got = x.const_data_ptr<float>();
  EXPECT(got[0] == infinity && std::isnan(got[1]) && got[2] == 3e38f);
  EXPECT(got[3] == 0 && got[4] == 0);
}

TEST_MAIN()
