// acn_infer: runs an exported model on a batch, to a depth or with early exits.
#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <exception>
#include <iomanip>
#include <iostream>
#include <vector>

#include "acn/runtime/engine.h"
#include "acn/runtime/errors.h"
#include "arrays.h"
#include "options.h"

namespace acn {
namespace {

// The whole input, in calls of `batch` samples.
Result run_all(const Engine& engine, const at::Tensor& input, const Arguments& arguments) {
  const int64_t total = input.size(0);
  if (arguments.batch == 0 || arguments.batch >= total) return engine.run(input, arguments.run);
  Result all;
  std::vector<at::Tensor> logits, depths;
  for (int64_t at = 0; at < total; at += arguments.batch) {
    const int64_t count = std::min(arguments.batch, total - at);
    Result part = engine.run(input.narrow(0, at, count), arguments.run);
    logits.push_back(part.logits);
    depths.push_back(part.depth);
    all.counts.resize(part.counts.size());
    for (size_t i = 0; i < part.counts.size(); ++i) all.counts[i] += part.counts[i];
    all.stops = std::move(part.stops);
    all.undecided += part.undecided;
  }
  all.logits = at::cat(logits);
  all.depth = at::cat(depths);
  return all;
}

void report(const Result& result) {
  for (size_t i = 0; i < result.stops.size(); ++i) {
    std::cout << "depth " << result.stops[i] << ": " << result.counts[i] << " samples\n";
  }
  if (result.undecided) {
    std::cerr << "acn_infer: " << result.undecided
              << " samples have NaN logits; they left at the last depth\n";
  }
}

void bench(const Engine& engine, const at::Tensor& input, const Arguments& arguments) {
  using Clock = std::chrono::steady_clock;
  run_all(engine, input, arguments);  // warm-up
  std::vector<double> times;
  for (int64_t i = 0; i < arguments.bench; ++i) {
    const auto start = Clock::now();
    run_all(engine, input, arguments);
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  const auto at = [&](double part) {
    return times[static_cast<size_t>(part * static_cast<double>(times.size() - 1))];
  };
  std::cout << std::fixed << std::setprecision(3) << "milliseconds: median " << at(0.5)
            << ", quartiles " << at(0.25) << " to " << at(0.75) << ", least " << at(0)
            << ", threads " << at::get_num_threads() << "\n";
}

// Floats may be rounded to the model's; any other dtype is a mistake, such as pixels of 0 to 255.
std::vector<at::ScalarType> accepted_by(const Engine& engine) {
  const at::ScalarType type = engine.input_dtype();
  if (type == at::kLong || type == at::kFloat) return {type};
  return {at::kFloat, type};
}

void infer(const Arguments& arguments) {
  if (arguments.threads > 0) at::set_num_threads(static_cast<int>(arguments.threads));
  const Engine engine =
      Engine::from_folder(arguments.model, arguments.aot, arguments.device);
  const at::Tensor read = read_array(arguments.input, accepted_by(engine));
  if (read.dim() == 0) throw FormatError(text(arguments.input, ": a number is no batch"));
  const at::Tensor input = read.to(engine.device(), engine.input_dtype());
  if (!arguments.out.empty()) check_writable(arguments.out);  // before what may take hours
  const Result result = run_all(engine, input, arguments);
  report(result);
  if (!arguments.out.empty()) {
    write_results(arguments.out, result.logits.cpu(), result.depth.cpu());
  }
  if (arguments.bench > 0) bench(engine, input, arguments);
}

}  // namespace
}  // namespace acn

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file that grows too large fails to be written, and says so
  acn::Arguments arguments;
  try {
    arguments = acn::parse_arguments(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "acn_infer: " << error.what() << "\n";
    return 2;
  }
  if (arguments.help) {
    std::cout << acn::kUsage;
    return 0;
  }
  try {
    acn::infer(arguments);
  } catch (const c10::Error& error) {
    std::cerr << "acn_infer: " << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "acn_infer: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
