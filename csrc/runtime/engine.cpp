#include "acn/runtime/engine.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>

#include "acn/runtime/errors.h"
#include "aoti_segment.h"
#include "device.h"
#include "measure.h"
#include "micro_batch.h"
#include "model.h"
#include "plain_operations.h"
#include "regroup.h"

namespace acn {
namespace {

using at::Tensor;

constexpr int64_t kConfigBytes = 1 << 16;

// The depths at which a run stops: the exits in their order and the last one.
std::vector<int64_t> stops_of(const RunOptions& options, int64_t layers) {
  const int64_t last = options.depth == -1 ? layers : options.depth;
  if (last < 0 || last > layers) {
    throw std::invalid_argument(text("depth is ", last, "; it takes 0 to ", layers));
  }
  check_threshold(options.criterion, options.threshold);
  if (options.lag < 0) {
    throw std::invalid_argument(text("lag is ", options.lag, "; it takes a number of exits"));
  }
  if (options.micro_batch < 0) {
    throw std::invalid_argument(
        text("micro_batch is ", options.micro_batch, "; it takes a number of samples, or 0"));
  }
  std::vector<int64_t> stops = options.exits;
  for (const int64_t exit : stops) {
    if (exit < 1 || exit >= last) {
      throw std::invalid_argument(
          last < 2 ? text("exits holds ", exit, "; a depth of ", last, " takes none")
                   : text("exits holds ", exit, "; it takes depths from 1 to ", last - 1));
    }
  }
  stops.push_back(last);
  std::sort(stops.begin(), stops.end());
  stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
  return stops;
}

// Throws std::invalid_argument where the engine does not run the model on the device.
void check_place(const Config& config, at::Device device) {
  device::check(device);
  if (!device.is_cpu() && config.family != Family::bert && config.alpha != 1) {
    throw std::invalid_argument(text("alpha is ", config.alpha, "; on ", device, " it takes 1"));
  }
}

// Micro-batches side by side need no synchronisation inside; one alone takes all threads.
template <class Body>
void for_each(size_t count, const Body& body) {
  const auto range = [&](int64_t begin, int64_t end) {
    const PlainOperations plain;  // of this thread
    for (int64_t i = begin; i < end; ++i) body(static_cast<size_t>(i));
  };
  if (count == 1) {
    range(0, 1);
  } else {
    at::parallel_for(0, static_cast<int64_t>(count), 1, range);
  }
}

}  // namespace

struct Engine::Parts {
  Parts(const Config& of, const Tensors& weights, Packages compiled)
      : Parts(of, weights.begin()->second.options(),
              (of.family == Family::bert ? text_model : image_model)(of, weights),
              std::move(compiled)) {}

  Parts(const Config& of, const at::TensorOptions& weights, std::unique_ptr<const Model> whole,
        Packages compiled)
      : config(of),
        dtype(at::typeMetaToScalarType(weights.dtype())),
        device(weights.device()),
        model(std::move(whole)),
        packages(std::move(compiled)),
        micro_batch(micro_batch_for(of, dtype == at::kFloat ? 4 : 2, cache_size())) {
    if (!device.is_cpu()) runner = device::runner(*model, device);
  }

  // The compiled segment of these layers where there is one.
  std::shared_ptr<const Segment> segment(int64_t begin, int64_t end) const {
    const auto compiled = packages.find({begin, end});
    if (compiled != packages.end()) return compiled->second;
    return model->segment(begin, end);
  }

  // On samples of a state between two segments; measured once for all calls.
  const SampleCosts& costs(int64_t begin, int64_t stop, const State& state) const {
    std::call_once(measured_, [&] {
      const int64_t end = config.family == Family::compiled ? stop : begin + 1;
      costs_ = measured_costs(*model->segment(begin, end), end - begin, state);
    });
    return costs_;
  }

  Config config;
  at::ScalarType dtype;
  at::Device device;
  std::unique_ptr<const Model> model;
  Packages packages;
  int64_t micro_batch;
  std::unique_ptr<const device::Runner> runner;  // null on the CPU

 private:
  mutable std::once_flag measured_;
  mutable SampleCosts costs_;
};

namespace {

// The samples that groups hold, those that left included, but for groups that all have left.
int64_t held_by(const std::vector<Survivors>& survivors) {
  int64_t held = 0;
  for (const Survivors& each : survivors) {
    if (!each.rows.empty()) held += each.state.x.size(0);
  }
  return held;
}

// Of any group that has live samples.
const State& state_of_one(const std::vector<Survivors>& survivors) {
  return std::find_if(survivors.begin(), survivors.end(), [](const Survivors& each) {
           return !each.rows.empty();
         })->state;
}

// One call: where results go, and what the micro-batches share.
class Run {
 public:
  Run(const Model& model, const RunOptions& options, Tensor& logits, Tensor& depth)
      : model_(model), options_(options), logits_(logits), depth_(depth) {}

  // Runs the segment on a micro-batch, lets those leave who may, and returns who stays.
  Survivors step(const Segment& segment, State state, const std::vector<int64_t>& rows,
                 const std::vector<int64_t>& samples, int64_t stop, bool last) {
    state = segment.run(std::move(state), last);
    const Tensor logits = model_.logits(state).contiguous();
    const Tensor wide = logits.to(at::kFloat);
    const float* numbers = wide.const_data_ptr<float>();
    const int64_t classes = wide.size(1);
    Survivors survivors;
    for (size_t i = 0; i < samples.size(); ++i) {
      const double sure = certainty(options_.criterion, numbers + rows[i] * classes, classes);
      if (last && std::isnan(sure)) ++undecided;
      if (last || leaves(options_.criterion, sure, options_.threshold)) {
        settle(logits, rows[i], samples[i], stop);
      } else {
        survivors.rows.push_back(rows[i]);
        survivors.samples.push_back(samples[i]);
      }
    }
    if (!survivors.rows.empty()) survivors.state = std::move(state);
    return survivors;
  }

  std::atomic<int64_t> undecided{0};

 private:
  void settle(const Tensor& logits, int64_t row, int64_t sample, int64_t stop) {
    TORCH_INTERNAL_ASSERT(logits.scalar_type() == logits_.scalar_type());
    const size_t bytes = static_cast<size_t>(logits.size(1)) * logits.element_size();
    std::memcpy(static_cast<char*>(logits_.mutable_data_ptr()) + sample * bytes,
                static_cast<const char*>(logits.const_data_ptr()) + row * bytes, bytes);
    depth_.mutable_data_ptr<int64_t>()[sample] = stop;
  }

  const Model& model_;
  const RunOptions& options_;
  Tensor& logits_;
  Tensor& depth_;
};

// The whole batch at once; the host reads how many samples left where in one piece, at the end.
void run_on_device(const device::Runner& runner, const Tensor& input, const RunOptions& options,
                   Result& result) {
  const auto stops = static_cast<int64_t>(result.stops.size());
  Tensor staying;
  if (options.counts) staying = at::zeros({stops}, result.depth.options().dtype(at::kInt));
  runner.run(input, result.stops, options, {result.logits, result.depth, staying});
  if (!options.counts) {
    result.counts.clear();
    return;
  }
  const Tensor read = staying.cpu();
  int64_t live = input.size(0);
  for (int64_t s = 0; s < stops; ++s) {
    const int64_t stay = read.const_data_ptr<int32_t>()[s];
    const bool last = s + 1 == stops;
    result.counts[static_cast<size_t>(s)] = last ? live : live - stay;
    if (last) result.undecided = stay;
    live = stay;
  }
}

}  // namespace

Engine Engine::from_folder(const std::string& folder, bool compiled, at::Device device) {
  device::check(device);  // before anything is read
  if (compiled && !device.is_cpu()) {
    throw std::invalid_argument(text("device is ", device, "; compiled segments run on cpu"));
  }
  const std::string path = folder + "/config.json";
  try {
    const Config config = parse_config(read_text(path, kConfigBytes));
    if (config.family == Family::compiled) {
      if (!compiled) {
        throw FormatError("it holds programs and no weights; load it as compiled (acn_infer "
                          "--aot) where you trust its source");
      }
      const auto weights = at::TensorOptions(scalar_type_of(config.dtype));
      return Engine(std::make_unique<const Parts>(config, weights, compiled_model(config, folder),
                                                  Packages()));
    }
    check_place(config, device);
    Tensors weights = load_weights(folder + "/model.safetensors", config);
    const at::ScalarType dtype = weights.begin()->second.scalar_type();
    for (auto& [name, tensor] : weights) tensor = tensor.to(device);
    Packages packages;
    if (compiled) {
      packages = load_packages(folder, config, dtype);
      if (packages.empty()) throw FormatError("it holds no compiled segment");
    }
    return Engine(std::make_unique<const Parts>(config, weights, std::move(packages)));
  } catch (const FormatError& error) {
    throw FormatError(text(folder, ": ", error.what()));
  }
}

Engine::Engine(const Config& config, Tensors weights) {
  if (config.family == Family::compiled) throw FormatError("a compiled model is loaded by folder");
  check_weights(weights, config);
  check_place(config, weights.begin()->second.device());
  const PlainOperations plain;
  parts_ = std::make_unique<const Parts>(config, weights, Packages());
}

Engine::Engine(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}

Engine::Engine(Engine&&) noexcept = default;
Engine::~Engine() = default;

const Config& Engine::config() const { return parts_->config; }
at::ScalarType Engine::dtype() const { return parts_->dtype; }
at::ScalarType Engine::input_dtype() const {
  const Config& config = parts_->config;
  if (config.family == Family::compiled) return scalar_type_of(config.input_dtype);
  return config.family == Family::bert ? at::kLong : parts_->dtype;
}
int64_t Engine::default_micro_batch() const { return parts_->micro_batch; }
size_t Engine::compiled_segments() const {
  return parts_->packages.size() + parts_->config.stops.size();
}
at::Device Engine::device() const { return parts_->device; }
GraphReport Engine::graphs() const {
  return parts_->runner ? parts_->runner->graphs() : GraphReport{};
}

Result Engine::run(const Tensor& given, const RunOptions& options) const {
  const Config& config = parts_->config;
  parts_->model->check(given);
  Result result;
  result.stops = stops_of(options, config.depth);
  for (const int64_t stop : result.stops) parts_->model->check_stop(stop);
  result.counts.assign(result.stops.size(), 0);
  const int64_t batch = given.size(0);
  const auto options_of = at::TensorOptions(parts_->device);
  result.logits = at::empty({batch, config.classes}, options_of.dtype(parts_->dtype));
  result.depth = at::empty({batch}, options_of.dtype(at::kLong));
  if (parts_->runner) {
    run_on_device(*parts_->runner, given, options, result);
    return result;
  }

  const auto samples_a_group = [&](int64_t live) {
    if (options.micro_batch) return options.micro_batch;
    return group_size(live, parts_->micro_batch, at::get_num_threads());
  };

  Run run(*parts_->model, options, result.logits, result.depth);
  std::vector<Survivors> survivors;
  {
    const PlainOperations plain;
    Survivors all;
    all.state.x = given.contiguous();
    all.rows.resize(static_cast<size_t>(batch));
    std::iota(all.rows.begin(), all.rows.end(), 0);
    all.samples = all.rows;
    survivors.push_back(std::move(all));
  }
  int64_t live = batch;
  int64_t begin = 0;
  for (size_t s = 0; s < result.stops.size() && live > 0; ++s) {
    const int64_t stop = result.stops[s];
    const std::shared_ptr<const Segment> segment = parts_->segment(begin, stop);
    const auto pack = [&] {
      if (s == 0) return true;  // the caller's batch
      const int64_t held = held_by(survivors);
      if (held == live) return false;
      const SampleCosts costs =
          options.costs ? *options.costs : parts_->costs(begin, stop, state_of_one(survivors));
      return packing_pays(costs, live, held, stop - begin);
    };
    const std::vector<Group> groups = pack() ? packed(std::move(survivors), samples_a_group(live))
                                             : unmoved(std::move(survivors));
    survivors = std::vector<Survivors>(groups.size());
    for_each(groups.size(), [&](size_t i) {
      Gathered group = groups[i].gather();
      if (begin == 0) group.state = parts_->model->embed(group.state.x);
      survivors[i] = run.step(*segment, std::move(group.state), group.rows, groups[i].samples(),
                              stop, s + 1 == result.stops.size());
    });
    int64_t staying = 0;
    for (const Survivors& each : survivors) staying += static_cast<int64_t>(each.rows.size());
    result.counts[s] = live - staying;
    live = staying;
    begin = stop;
  }
  result.undecided = run.undecided;
  return result;
}

}  // namespace acn
