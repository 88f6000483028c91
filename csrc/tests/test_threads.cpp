// Many threads on one engine, and many calls without growth.
#include <ATen/ATen.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "acn/runtime/engine.h"
#include "check.h"
#include "models.h"

using namespace acn;
using namespace acn::test;

namespace {

int64_t resident_pages() {
  int64_t size = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident;
}

RunOptions early() {
  RunOptions options;
  options.exits = {1, 2, 3};
  options.threshold = 1.2;
  options.micro_batch = 4;
  return options;
}

}  // namespace

TEST(threads_share_an_engine) {
  for (const char* kind : {"mixer_closing", "vit_first"}) {
    const Config config = parse_config(config_text(kind, 4));
    const Engine engine(config, random_weights(config));
    std::vector<at::Tensor> images;
    std::vector<Result> expected;
    for (int i = 0; i < 4; ++i) {
      images.push_back(random_images(config, 3 + 5 * i));
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

TEST(a_thousand_calls_do_not_grow) {
  const Config config = parse_config(config_text("mixer", 4));
  const Engine engine(config, random_weights(config));
  const at::Tensor images = random_images(config, 8);
  const auto repeat = [&](int times) {
    for (int i = 0; i < times; ++i) engine.run(images, early());
  };
  repeat(200);
  const int64_t before = resident_pages();
  repeat(1000);
  // One page a call would be a leak; a sanitizer's quarantine of freed memory grows by design.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT(resident_pages() - before < 500);
#else
  (void)before;
#endif
}

TEST_MAIN()
