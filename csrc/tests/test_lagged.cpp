// Early exit with an artificial lag on the CPU = the ordinary engine.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "acn/runtime/engine.h"
#include "check.h"
#include "head.h"
#include "host_exits.h"
#include "models.h"
#include "segment_pass.h"
#include "steps.h"

using namespace acn;
using namespace acn::test;

namespace {

constexpr int64_t kDepth = 5;

struct Case {
  Case(const std::string& kind, int64_t batch)
      : Case(parse_config(config_text(kind, kDepth)), batch) {}

  Case(const Config& of, int64_t batch)
      : config(of),
        weights(random_weights(config)),
        engine(config, weights),
        model((config.family == Family::bert ? text_model : image_model)(config, weights)),
        input(random_input(config, batch).to(engine.input_dtype())) {}

  Config config;
  Tensors weights;
  Engine engine;
  std::unique_ptr<const Model> model;
  at::Tensor input;
};

// A criterion's values at an exit, as the engine's own decisions see them: half are beyond it.
double middle(const Case& it, Criterion criterion, int64_t exit) {
  RunOptions options;
  options.depth = exit;
  const at::Tensor logits = it.engine.run(it.input, options).logits;
  std::vector<double> values;
  for (int64_t i = 0; i < logits.size(0); ++i) {
    values.push_back(certainty(criterion, logits[i].data_ptr<float>(), logits.size(1)));
  }
  if (values.size() < 2) return 0.5;
  std::sort(values.begin(), values.end());
  double widest = -1, between = 0.5;
  for (size_t i = values.size() / 4; i + 1 < values.size() - values.size() / 4; ++i) {
    if (values[i + 1] - values[i] <= widest) continue;
    widest = values[i + 1] - values[i];
    between = (values[i + 1] + values[i]) / 2;
  }
  return between;
}

// Counts what the schedule asks for.
class Watched final : public DevicePass {
 public:
  Watched(DevicePass& pass, size_t stops, int64_t lag) : pass_(pass), stops_(stops), lag_(lag) {}

  void advance(size_t s, int64_t rows) override {
    EXPECT(s == advanced++ && s < stops_);
    layers_of_rows += rows;
    pass_.advance(s, rows);
  }
  std::unique_ptr<Count> count(size_t s) override {
    EXPECT(s + 1 == advanced && s + static_cast<size_t>(lag_) + 1 < stops_);
    return std::make_unique<WatchedCount>(*this, s, pass_.count(s));
  }
  int64_t pack(size_t s, int64_t rows, int64_t most) override {
    EXPECT(s + 1 == advanced && most > 0 && most <= rows);
    const int64_t left = pass_.pack(s, rows, most);
    EXPECT(left >= most && left <= rows);
    return left;
  }

  size_t advanced = 0;
  int64_t layers_of_rows = 0;

 private:
  struct WatchedCount final : Count {
    WatchedCount(const Watched& pass, size_t s, std::unique_ptr<Count> count)
        : pass_(pass), s_(s), count_(std::move(count)) {}
    int64_t wait() override {
      EXPECT(s_ + static_cast<size_t>(pass_.lag_) + 1 == pass_.advanced);  // as late as it was told
      return count_->wait();
    }
    const Watched& pass_;
    size_t s_;
    std::unique_ptr<Count> count_;
  };

  DevicePass& pass_;
  size_t stops_;
  int64_t lag_;
};

Results room_for(const Case& it, size_t stops) {
  const int64_t batch = it.input.size(0);
  return {at::full({batch, it.config.classes}, -7.0), at::full({batch}, -7, at::kLong),
          at::zeros({static_cast<int64_t>(stops)}, at::kInt)};
}

void expect_results(const Result& expected, const Results& results) {
  const int64_t batch = expected.depth.size(0);
  const auto stops = static_cast<int64_t>(expected.stops.size());
  EXPECT(results.depth.equal(expected.depth));
  const bool same = at::allclose(results.logits, expected.logits, 1e-4, 1e-4, /*equal_nan=*/true);
  EXPECT(same);
  int64_t live = batch;
  for (int64_t s = 0; s + 1 < stops; ++s) {
    const int64_t stay = results.staying[s].item<int32_t>();
    EXPECT(live - stay == expected.counts[static_cast<size_t>(s)]);
    live = stay;
  }
  EXPECT(live == expected.counts.back());
  EXPECT(results.staying[stops - 1].item<int32_t>() == expected.undecided);
}

// Segment by segment, as large batches go.
void check(const Case& it, const RunOptions& options, int64_t lag) {
  const c10::InferenceMode no_autograd;
  const Result expected = it.engine.run(it.input, options);
  const Results results = room_for(it, expected.stops.size());
  const HostExits exits;
  SegmentPass pass(*it.model, exits, it.input, expected.stops, options, results);
  Watched watched(pass, expected.stops.size(), lag);
  run_lagged(watched, expected.stops.size(), it.input.size(0), lag);
  expect_results(expected, results);
}

// Step by step on tensors at their places, as small batches go: the host picks the steps' sizes, or
// what a device would do that picks them by the numbers it has.
void check_steps(const Case& it, const RunOptions& options, Steps& steps) {
  const c10::InferenceMode no_autograd;
  const Result expected = it.engine.run(it.input, options);
  const size_t stops = expected.stops.size();
  for (const int64_t lag : {0, 1, 2}) {
    const Results results = room_for(it, stops);
    const HostExits exits;
    steps.load(it.input);
    StepPass pass(steps, exits, [&](size_t s, int64_t rows) { steps.queue(s, rows); });
    Watched watched(pass, stops, lag);
    run_lagged(watched, stops, steps.kind().rows, lag);
    steps.unload(it.input.size(0), results);
    expect_results(expected, results);
  }
  const Results results = room_for(it, stops);
  steps.load(it.input);
  steps.queue(0, steps.kind().rows);
  for (size_t s = 1; s < stops && steps.staying(s - 1).item<int32_t>() > 0; ++s) {
    steps.queue(s, bucket_of(steps.staying(s - 1).item<int32_t>()));
  }
  steps.unload(it.input.size(0), results);
  expect_results(expected, results);
}

}  // namespace

TEST(every_kind_criterion_threshold_and_lag) {
  for (const char* kind : {"vit", "vit_first", "mixer", "mixer_closing", "bert"}) {
    const Case it(kind, 21);
    for (const Criterion criterion :
         {Criterion::entropy, Criterion::probability, Criterion::margin}) {
      const double most = criterion == Criterion::entropy ? INFINITY : 1;
      for (const double threshold : {0.0, middle(it, criterion, 2), most}) {
        for (const int64_t lag : {0, 1, 2, 9}) {
          RunOptions options;
          options.exits = {1, 2, 3, 4};
          options.criterion = criterion;
          options.threshold = threshold;
          check(it, options, lag);
        }
      }
    }
  }
}

TEST(batches_of_any_size_and_any_stops) {
  for (const int64_t batch : {1, 2, 3, 17, 300}) {
    const Case it("mixer", batch);
    for (const std::vector<int64_t>& exits : {std::vector<int64_t>{}, {2}, {1, 3}, {1, 2, 3, 4}}) {
      for (const int64_t lag : {0, 1, 3}) {
        RunOptions options;
        options.exits = exits;
        options.threshold = middle(it, Criterion::entropy, 1);
        check(it, options, lag);
      }
    }
  }
}

TEST(small_batches_one_after_the_other_on_the_same_tensors) {
  for (const char* kind : {"vit_first", "mixer_closing", "bert"}) {
    Case it(kind, 13);
    RunOptions options;
    options.exits = {1, 2, 4};
    options.threshold = middle(it, Criterion::entropy, 2);
    const at::Tensor all = it.input.clone();
    const HostExits exits;
    const c10::InferenceMode no_autograd;
    Steps steps(*it.model, exits, {{1, 2, 4, 5}, options.criterion, options.threshold, 16,
                                        it.model->roomy(all.sizes().slice(1))},
                all, room_for(it, 1).logits);
    for (const int64_t batch : {13, 9, 1, 13, 10}) {
      it.input = all.narrow(0, 13 - batch, batch).contiguous();
      check_steps(it, options, steps);
    }
    it.input = all.clone();
    if (it.config.family == Family::bert) continue;
    it.input[2].fill_(NAN);
    check_steps(it, options, steps);
    it.input = all;
    check_steps(it, options, steps);
  }
}

TEST(texts_of_other_lengths_in_steps_with_room_for_all) {
  Config config = parse_config(config_text("bert", kDepth));
  config.positions = 40;
  Case it(config, 11);
  RunOptions options;
  options.exits = {1, 3};
  const at::Tensor all = it.input.clone();
  const HostExits exits;
  const c10::InferenceMode no_autograd;
  options.threshold = middle(it, Criterion::entropy, 2);
  const std::vector<int64_t> room = it.model->roomy({3, 17});
  EXPECT(room == (std::vector<int64_t>{3, 32}));
  Steps steps(*it.model, exits, {{1, 3, 5}, options.criterion, options.threshold, 16, room}, all,
              room_for(it, 1).logits);
  for (const int64_t length : {17, 32, 1, 30, 2}) {
    it.input = all.narrow(2, 0, length).contiguous();
    check_steps(it, options, steps);
  }
}

TEST(room_for_texts_of_like_lengths) {
  const Config config = parse_config(config_text("bert", 1));
  const auto room = [&](int64_t positions, int64_t tokens) {
    Config longer = config;
    longer.positions = positions;
    return text_model(longer, random_weights(longer))->roomy({2, tokens})[1];
  };
  for (const auto& [tokens, expected] : {std::pair(1, 16), {16, 16}, {17, 32}, {33, 64}, {64, 64},
                                         {65, 128}, {128, 128}, {129, 192}, {300, 300}}) {
    EXPECT(room(300, tokens) == expected);
  }
  EXPECT(room(12, 5) == 12);
}

// The head that a device's kernel computes, from what it reads there, in ATen's words.
TEST(the_head_of_a_model_is_what_its_logits_are_made_of) {
  for (const char* kind : {"vit", "vit_first", "mixer_closing", "bert"}) {
    const Case it(kind, 6);
    const c10::InferenceMode no_autograd;
    for (const int64_t depth : {0, 2}) {
      State state = it.model->embed(it.input);
      state = it.model->segment(0, depth)->run(std::move(state), false);
      const Head& head = *it.model->head();
      const State read = it.model->read_by_head(state);
      at::Tensor sum = read.y.defined() ? read.y + read.x : read.x;
      if (head.first_row) sum = sum.slice(1, 0, 1);
      if (head.norm) {
        sum = at::layer_norm(sum, {it.config.width}, head.norm->weight, head.norm->bias);
      }
      const at::Tensor logits = at::linear(sum.mean(1), head.linear.weight, head.linear.bias);
      EXPECT(at::allclose(logits, it.model->logits(state), 1e-4, 1e-4));
    }
  }
}

TEST(buckets_are_powers_of_two) {
  EXPECT(bucket_of(1) == 1 && bucket_of(2) == 2 && bucket_of(3) == 4 && bucket_of(16) == 16);
  EXPECT(bucket_of(17) == 32 && bucket_of(0) == 1);
}

TEST(nan_never_leaves) {
  const Case it("vit_first", 6);
  it.input[3].fill_(NAN);
  for (const int64_t lag : {0, 1, 2}) {
    RunOptions options;
    options.exits = {1, 2, 4};
    options.threshold = INFINITY;
    check(it, options, lag);
  }
}

TEST(rows_that_left_are_run_for_as_long_as_the_host_does_not_know) {
  const Case it("mixer", 40);
  RunOptions options;
  options.exits = {1, 2, 3, 4};
  options.threshold = INFINITY;  // all leave at the first exit
  const std::vector<int64_t> stops{1, 2, 3, 4, 5};
  for (const int64_t lag : {0, 1, 2}) {
    const c10::InferenceMode no_autograd;
    const Results results = room_for(it, stops.size());
    const HostExits exits;
    SegmentPass pass(*it.model, exits, it.input, stops, options, results);
    Watched watched(pass, stops.size(), lag);
    run_lagged(watched, stops.size(), 40, lag);
    EXPECT(watched.advanced == 1 + static_cast<size_t>(lag));
    EXPECT(results.depth.eq(1).all().item<bool>());
  }
}

TEST(packing_pays_where_it_moves_less_than_it_saves) {
  EXPECT(!packing_pays_lagged(100, 100, 1) && !packing_pays_lagged(100, 99, 1));
  EXPECT(packing_pays_lagged(100, 99, 16) && packing_pays_lagged(100, 50, 1) && packing_pays_lagged(2, 1, 1));
}

TEST_MAIN()
