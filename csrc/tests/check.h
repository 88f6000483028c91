// A test program in a few lines: TEST bodies run one after the other, a failed EXPECT ends one.
#pragma once

#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace acn::test {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::vector<std::pair<const char*, std::function<void()>>>& cases() {
  static std::vector<std::pair<const char*, std::function<void()>>> all;
  return all;
}

struct Registered {
  Registered(const char* name, std::function<void()> body) { cases().emplace_back(name, body); }
};

inline void fail(const char* file, int line, const std::string& what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

// The message of the E that `run` throws; a failure where it throws another or none.
template <class E>
std::string thrown(const char* file, int line, const std::function<void()>& run) {
  try {
    run();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    fail(file, line, std::string("another exception: ") + error.what());
  }
  fail(file, line, "no exception");
  return "";
}

inline int run_all() {
  int failed = 0;
  for (const auto& [name, body] : cases()) {
    try {
      body();
      std::printf("ok    %s\n", name);
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAIL  %s\n      %s\n", name, error.what());
    }
  }
  std::printf("%zu tests, %d failed\n", cases().size(), failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace acn::test

#define TEST(name)                                                    \
  static void name();                                                 \
  static const ::acn::test::Registered registered_##name{#name, name}; \
  static void name()

#define EXPECT(condition) \
  if (!(condition)) ::acn::test::fail(__FILE__, __LINE__, #condition)

// `part` must occur in the message.
#define EXPECT_THROWS(E, part, ...)                                                             \
  if (const std::string thrown_ =                                                               \
          ::acn::test::thrown<E>(__FILE__, __LINE__, [&] { (void)(__VA_ARGS__); });              \
      thrown_.find(part) == std::string::npos)                                                  \
  ::acn::test::fail(__FILE__, __LINE__, "the message is: " + thrown_)

#define TEST_MAIN() \
  int main() { return ::acn::test::run_all(); }
