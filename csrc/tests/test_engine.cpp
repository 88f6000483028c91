// Engine = an independent loop in double precision, for every family, criterion and threshold.
#include "acn/runtime/engine.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "acn/product.h"
#include "acn/runtime/errors.h"
#include "check.h"
#include "models.h"

using namespace acn;
using namespace acn::test;

namespace {

constexpr double kTolerance = 2e-4;
constexpr int64_t kDepth = 4;
const std::vector<std::string> kKinds{"vit", "vit_first", "mixer", "mixer_closing", "bert"};

std::vector<std::pair<std::string, double>> kinds_and_alphas() {
  std::vector<std::pair<std::string, double>> all;
  for (const std::string& kind : kKinds) {
    for (const double alpha : {0.0, 0.3, 1.0}) all.emplace_back(kind, alpha);
  }
  return all;
}

struct Case {
  explicit Case(const std::string& kind, int64_t batch, at::ScalarType type = at::kFloat,
                double alpha = 1)
      : config(parse_config(config_text(kind, kDepth, alpha))),
        weights(random_weights(config, type)),
        engine(config, weights),
        images(random_input(config, batch).to(engine.input_dtype())),
        truth(logits_by_depth(config, weights, images)) {}

  Config config;
  Tensors weights;
  Engine engine;
  at::Tensor images;
  at::Tensor truth;  // [L+1, B, C]
};

double certainty_of(Criterion criterion, const at::Tensor& logits) {
  const at::Tensor p = logits.softmax(0);
  if (criterion == Criterion::entropy) return -(p * p.log()).sum().item<double>();
  const at::Tensor top = std::get<0>(p.topk(2));
  const double best = top[0].item<double>();
  return criterion == Criterion::margin ? best - top[1].item<double>() : best;
}

bool sure(Criterion criterion, const at::Tensor& logits, double threshold) {
  const double value = certainty_of(criterion, logits);
  return criterion == Criterion::entropy ? value < threshold : value > threshold;
}

// In the middle of the certainties at the exits, in the widest gap: rounding decides no exit.
double clear_threshold(const Case& it, Criterion criterion, const std::vector<int64_t>& exits) {
  std::vector<double> values;
  for (const int64_t k : exits) {
    for (int64_t i = 0; i < it.images.size(0); ++i) {
      values.push_back(certainty_of(criterion, it.truth[k][i]));
    }
  }
  std::sort(values.begin(), values.end());
  double widest = 0, middle = values.empty() ? 0.5 : values[0];
  for (size_t i = values.size() / 4 + 1; i < values.size() * 3 / 4; ++i) {
    if (values[i] - values[i - 1] <= widest) continue;
    widest = values[i] - values[i - 1];
    middle = (values[i] + values[i - 1]) / 2;
  }
  return middle;
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return a.numel() ? (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>() : 0;
}

// Makes NaN of what the model sees of a sample, and of no other.
void spoil(const Case& it, int64_t sample) {
  if (it.config.family != Family::bert) {
    it.images[sample].fill_(NAN);
    return;
  }
  it.weights.at("bert.embeddings.word.weight")[0].fill_(NAN);
  at::Tensor words = it.images.select(1, 0);
  words.clamp_min_(1);
  words[sample][0] = 0;
}

void check_run(const Case& it, const RunOptions& options) {
  const int64_t last = options.depth == -1 ? kDepth : options.depth;
  const Result result = it.engine.run(it.images, options);
  std::vector<int64_t> counts(result.stops.size(), 0);
  for (int64_t i = 0; i < it.images.size(0); ++i) {
    int64_t depth = last;
    for (const int64_t k : options.exits) {
      if (sure(options.criterion, it.truth[k][i], options.threshold)) {
        depth = k;
        break;
      }
    }
    EXPECT(result.depth[i].item<int64_t>() == depth);
    EXPECT(largest_difference(result.logits[i], it.truth[depth][i]) < kTolerance);
    ++counts[std::find(result.stops.begin(), result.stops.end(), depth) - result.stops.begin()];
  }
  EXPECT(counts == result.counts);
  EXPECT(result.undecided == 0);
}

}  // namespace

TEST(every_depth) {
  for (const auto& [kind, alpha] : kinds_and_alphas()) {
    const Case it(kind, 5, at::kFloat, alpha);
    for (int64_t depth = 0; depth <= kDepth; ++depth) {
      RunOptions options;
      options.depth = depth;
      check_run(it, options);
    }
  }
}

TEST(every_criterion_from_never_to_always) {
  const std::vector<int64_t> exits{1, 2, 3};
  for (const std::string& kind : kKinds) {
    const Case it(kind, 37);
    for (const Criterion criterion :
         {Criterion::entropy, Criterion::probability, Criterion::margin}) {
      const double middle = clear_threshold(it, criterion, exits);
      const double most = criterion == Criterion::entropy ? INFINITY : 1;
      for (const double threshold : {0.0, middle, most}) {
        for (const int64_t micro_batch : {0, 1, 5, 64}) {
          RunOptions options;
          options.exits = exits;
          options.criterion = criterion;
          options.threshold = threshold;
          options.micro_batch = micro_batch;
          check_run(it, options);
        }
      }
    }
  }
}

TEST(exits_at_every_alpha) {
  for (const auto& [kind, alpha] : kinds_and_alphas()) {
    const Case it(kind, 21, at::kFloat, alpha);
    RunOptions options;
    options.exits = {1, 3};
    options.threshold = clear_threshold(it, Criterion::entropy, options.exits);
    for (const int64_t micro_batch : {0, 1, 5}) {
      options.micro_batch = micro_batch;
      check_run(it, options);
    }
  }
}

TEST(any_set_of_exits_and_a_depth) {
  const Case it("mixer", 20);
  for (const std::vector<int64_t>& exits :
       {std::vector<int64_t>{}, {2}, {1, 3}, {1, 2}, {3}}) {
    for (const int64_t depth : {int64_t{4}, exits.empty() ? 0 : exits.back() + 1}) {
      RunOptions options;
      options.exits = exits;
      options.depth = depth;
      options.threshold = clear_threshold(it, Criterion::entropy, exits);
      check_run(it, options);
    }
  }
}

TEST(batches_of_any_size) {
  for (const int64_t batch : {0, 1, 3, 1000}) {
    const Case it("mixer", batch);
    RunOptions options;
    options.exits = {1, 2, 3};
    options.threshold = clear_threshold(it, Criterion::entropy, options.exits);
    check_run(it, options);
  }
}

// Whether those that left are packed away or run along: the others' logits, depths and counts are
// the same, up to the order in which products of other sizes add.
TEST(compaction_changes_nothing) {
  const SampleCosts never{.layer = 0, .copy = 1}, always{.layer = 1, .copy = 0};
  for (const auto& [kind, alpha] : kinds_and_alphas()) {
    const Case it(kind, 23, at::kFloat, alpha);
    RunOptions options;
    options.exits = {1, 2, 3};
    options.threshold = clear_threshold(it, Criterion::entropy, options.exits);
    for (const int64_t micro_batch : {0, 4}) {
      options.micro_batch = micro_batch;
      options.costs = always;
      check_run(it, options);
      const at::Tensor packed = it.engine.run(it.images, options).logits;
      options.costs = never;
      check_run(it, options);
      EXPECT(largest_difference(it.engine.run(it.images, options).logits, packed) < 1e-5);
      options.costs.reset();
      check_run(it, options);
    }
  }
}

TEST(logits_depend_on_no_other_sample) {
  // Bitwise where all products are on packed weights; ATen's of other sizes add in another order.
  for (const std::string& kind : kKinds) {
    const Case it(kind, 9);
    RunOptions options;
    options.exits = {1, 2, 3};
    options.threshold = clear_threshold(it, Criterion::entropy, options.exits);
    const Result together = it.engine.run(it.images, options);
    for (int64_t i = 0; i < 9; ++i) {
      const Result alone = it.engine.run(it.images.narrow(0, i, 1), options);
      EXPECT(alone.depth[0].item<int64_t>() == together.depth[i].item<int64_t>());
      const bool packed = it.config.family == Family::mixer && tiles_here().size() > 1;
      EXPECT(!packed || alone.logits[0].equal(together.logits[i]));
      EXPECT(largest_difference(alone.logits[0], together.logits[i]) < 1e-5);
    }
  }
}

TEST(nan_runs_to_the_last_depth_and_is_reported) {
  for (const std::string& kind : kKinds) {
    const Case it(kind, 3);
    spoil(it, 1);
    RunOptions options;
    options.exits = {1, 2};
    options.threshold = INFINITY;
    const Result result = it.engine.run(it.images, options);
    EXPECT(result.depth.equal(at::tensor({int64_t{1}, kDepth, int64_t{1}})));
    EXPECT(result.logits[1].isnan().all().item<bool>());
    EXPECT(!result.logits[0].isnan().any().item<bool>() && result.undecided == 1);
  }
}

TEST(bf16) {
  for (const auto& [kind, alpha] : kinds_and_alphas()) {
    const Case it(kind, 6, at::kBFloat16, alpha);
    const Result full = it.engine.run(it.images, {});
    EXPECT(full.logits.scalar_type() == at::kBFloat16);
    const double size = it.truth[kDepth].abs().max().item<double>();
    EXPECT(largest_difference(full.logits, it.truth[kDepth]) < 0.05 * size);
    RunOptions options;
    options.exits = {1};
    options.threshold = INFINITY;
    const Result early = it.engine.run(it.images, options);
    EXPECT(early.depth.eq(1).all().item<bool>());
    EXPECT(largest_difference(early.logits, it.truth[1]) < 0.05 * size);
  }
}

TEST(images_with_gaps) {
  const Case it("mixer", 6);
  const at::Tensor gaps = it.images.repeat({2, 1, 1, 1}).slice(0, 0, 12, 2);
  const at::Tensor expected = it.engine.run(gaps.contiguous(), {}).logits;
  EXPECT(it.engine.run(gaps, {}).logits.equal(expected));
  EXPECT(!it.engine.run(gaps, {}).logits.is_inference());
}

TEST(texts_of_two_rows_and_of_any_length) {
  const Case it("bert", 4);
  for (const int64_t length : {1, 5, 12}) {
    at::Tensor tokens = at::ones({4, 2, length}, at::kLong);
    tokens.select(1, 0).copy_(at::randint(50, {4, length}, at::kLong));
    const at::Tensor truth = logits_by_depth(it.config, it.weights, tokens);
    EXPECT(largest_difference(it.engine.run(tokens, {}).logits, truth[kDepth]) < kTolerance);
  }
}

TEST(padding_is_not_read) {
  const Case it("bert", 5);
  at::Tensor tokens = it.images.clone();
  const at::Tensor padding = tokens.select(1, 1).eq(0);
  at::Tensor words = tokens.select(1, 0);
  words.copy_(at::where(padding, 49 - words, words));
  const at::Tensor expected = it.engine.run(it.images, {}).logits;
  EXPECT(largest_difference(it.engine.run(tokens, {}).logits, expected) < 1e-6);
}

TEST(texts_that_are_refused) {
  const Case it("bert", 2);
  const auto refuse = [&](const char* message, const at::Tensor& tokens) {
    EXPECT_THROWS(std::invalid_argument, message, it.engine.run(tokens, {}));
  };
  refuse("it takes [batch, 2 or 3, 1 to 12]", it.images.select(1, 0));
  refuse("it takes [batch, 2 or 3, 1 to 12]", at::zeros({2, 4, 5}, at::kLong));
  refuse("it takes [batch, 2 or 3, 1 to 12]", at::zeros({2, 2, 13}, at::kLong));
  refuse("it takes [batch, 2 or 3, 1 to 12]", at::zeros({2, 2, 0}, at::kLong));
  refuse("it takes Long", at::zeros({2, 2, 5}));
  for (const auto& [row, name] : {std::pair(0, "words"), {1, "mask"}, {2, "kinds"}}) {
    for (const int64_t value : {-1, 50}) {
      at::Tensor tokens = it.images.clone();
      tokens[1][row][3] = value;
      refuse(text(name, " holds ", value).c_str(), tokens);
    }
  }
}

TEST(weights_are_shared) {
  Case it("mixer", 2);
  it.weights.at("head.bias").add_(1);
  const at::Tensor shifted = it.truth[kDepth] + 1;
  EXPECT(largest_difference(it.engine.run(it.images, {}).logits, shifted) < kTolerance);
}

TEST(what_is_refused) {
  const Case it("vit", 2);
  const auto refuse = [&](const char* message, RunOptions options) {
    EXPECT_THROWS(std::invalid_argument, message, it.engine.run(it.images, options));
  };
  RunOptions options;
  for (const int64_t exit : {0, 4, 5, -1}) {
    options.exits = {exit};
    refuse("exits holds", options);
  }
  options.exits = {3};
  options.depth = 3;
  refuse("exits holds 3; it takes depths from 1 to 2", options);
  options = {};
  options.depth = 5;
  refuse("depth is 5; it takes 0 to 4", options);
  options = {};
  options.threshold = -1;
  refuse("threshold is -1", options);
  options = {};
  options.micro_batch = -2;
  refuse("micro_batch is -2", options);
  const at::Tensor& images = it.images;
  EXPECT_THROWS(std::invalid_argument, "it takes [batch, 3, 10, 10]",
               it.engine.run(images.flatten(1), {}));
  EXPECT_THROWS(std::invalid_argument, "it takes [batch, 3, 10, 10]",
               it.engine.run(images.slice(3, 0, 8), {}));
  EXPECT_THROWS(std::invalid_argument, "it takes Float", it.engine.run(images.to(at::kDouble), {}));
}

TEST(weights_that_are_not_of_the_model) {
  const Case it("vit", 1);
  Tensors weights = it.weights;
  weights.erase("head.bias");
  EXPECT_THROWS(FormatError, "'head.bias' is missing", Engine(it.config, weights));
  weights["head.bias"] = at::zeros({8});
  EXPECT_THROWS(FormatError, "takes [7]", Engine(it.config, weights));
  weights["head.bias"] = at::zeros({7}, at::kDouble);
  EXPECT_THROWS(FormatError, "all fp32 or all bf16", Engine(it.config, weights));
  weights["head.bias"] = at::zeros({7});
  weights["more"] = at::zeros({7});
  EXPECT_THROWS(FormatError, "tensors, and the configuration takes", Engine(it.config, weights));
}

TEST(a_saved_model_is_the_live_one) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const Case it("vit_first", 4, type);
    const Folder folder;
    write_model(folder, config_text("vit_first", kDepth), it.weights);
    const Engine loaded = Engine::from_folder(folder.path());
    EXPECT(loaded.dtype() == type);
    EXPECT(loaded.run(it.images, {}).logits.equal(it.engine.run(it.images, {}).logits));
  }
}

TEST_MAIN()
