// The command line of acn_infer.
#pragma once

#include <c10/core/Device.h>

#include <stdexcept>
#include <string>

#include "acn/runtime/engine.h"

namespace acn {

class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::string model;
  std::string input;
  std::string out;
  at::Device device = at::kCPU;
  RunOptions run;
  int64_t batch = 0;    // samples a call; 0: all
  int64_t bench = 0;    // timed repetitions; 0: none
  int64_t threads = 0;  // 0: torch's default
  bool aot = false;     // run the compiled segments in the model's folder
  bool help = false;
};

extern const char* const kUsage;

// Throws UsageError, or std::invalid_argument of a criterion or a threshold.
Arguments parse_arguments(int argc, const char* const* argv);

}  // namespace acn
