// Many threads on one engine, and many calls without growth.
#include <ATen/ATen.h>
#include <malloc.h>

#include <atomic>
#include <thread>

#include "acn/runtime/engine.h"
#include "check.h"
#include "models.h"

using namespace acn;
using namespace acn::test;

namespace {

// What the heap has given out and not got back. Unlike the process's size it does not hang on how
// full pages are and how much else the machine has to do.
int64_t heap_bytes() {
  const struct mallinfo2 heap = mallinfo2();
  return static_cast<int64_t>(heap.uordblks + heap.hblkhd);
}

// By how much the heap grows a call, over ten thousand of them after it is warm. A sanitizer has a
// heap of its own: there it watches a hundred calls, and nothing is measured.
template <class Call>
double grown_bytes_a_call(const Call& call) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  for (int i = 0; i < 100; ++i) call();
  return 0;
#else
  constexpr int kWarm = 1000, kCalls = 10000;
  for (int i = 0; i < kWarm; ++i) call();
  const int64_t before = heap_bytes();
  for (int i = 0; i < kCalls; ++i) call();
  return static_cast<double>(heap_bytes() - before) / kCalls;
#endif
}

constexpr double kLeak = 16;  // bytes; the smallest object on the heap takes twice as many

RunOptions early() {
  RunOptions options;
  options.exits = {1, 2, 3};
  options.threshold = 1.2;
  options.micro_batch = 4;
  return options;
}

}  // namespace

TEST(threads_share_an_engine) {
  for (const char* kind : {"mixer_closing", "vit_first", "bert"}) {
    const Config config = parse_config(config_text(kind, 4));
    const Engine engine(config, random_weights(config));
    std::vector<at::Tensor> images;
    std::vector<Result> expected;
    for (int i = 0; i < 4; ++i) {
      images.push_back(random_input(config, 3 + 5 * i));
      expected.push_back(engine.run(images[i], early()));
    }
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 12; ++i) {
          const size_t which = static_cast<size_t>(t + i) % 4;
          const Result result = engine.run(images[which], early());
          wrong += !result.logits.equal(expected[which].logits);
          wrong += !result.depth.equal(expected[which].depth);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT(wrong == 0);
  }
}

TEST(ten_thousand_calls_do_not_grow) {
  const Config config = parse_config(config_text("mixer", 4));
  const Engine engine(config, random_weights(config));
  const at::Tensor images = random_input(config, 8);
  EXPECT(grown_bytes_a_call([&] { engine.run(images, early()); }) < kLeak);
}

TEST(a_parameter_of_another_shape_is_refused) {
  for (const std::string kind : {"vit", "mixer_closing"}) {
    const Config config = parse_config(config_text(kind, 2));
    Tensors weights = random_weights(config);
    const Engine engine(config, weights);
    const at::Tensor images = random_input(config, 3);
    const at::Tensor expected = engine.run(images, {}).logits;
    for (auto& [name, shared] : weights) {
      // Row-wise kernels take the shape of norms, and the stem that of its class token, on trust.
      if (name.find("fc") == std::string::npos) continue;
      const at::Tensor whole = shared.clone();
      shared.resize_(std::vector<int64_t>(shared.dim(), 1));
      EXPECT_THROWS(c10::Error, "", engine.run(images, {}));
      shared.resize_(whole.sizes()).copy_(whole);
      EXPECT(engine.run(images, {}).logits.equal(expected));
    }
  }
}

TEST(a_failing_segment_frees_everything) {
  const Config config = parse_config(config_text("vit", 4));
  Tensors weights = random_weights(config);
  const Engine engine(config, weights);
  const at::Tensor images = random_input(config, 8);
  const at::Tensor expected = engine.run(images, early()).logits;
  at::Tensor shared = weights.at("blocks.2.attn.proj.weight");
  const at::Tensor whole = shared.clone();
  shared.resize_({1, 1});
  EXPECT_THROWS(c10::Error, "", engine.run(images, {}));
  EXPECT(grown_bytes_a_call([&] {
           try {
             engine.run(images, {});
           } catch (const c10::Error&) {
           }
         }) < kLeak);
  shared.resize_(whole.sizes()).copy_(whole);
  EXPECT(engine.run(images, early()).logits.equal(expected));
}

TEST_MAIN()
