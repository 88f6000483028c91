#include <ATen/ops/zeros.h>

#include <algorithm>
#include <list>
#include <memory>
#include <mutex>

#include "../device.h"
#include "../plain_operations.h"
#include "../segment_pass.h"
#include "captured_batch.h"
#include "switch_graph.h"

namespace acn::device {

bool built_in() { return true; }

namespace {

using at::Tensor;

constexpr int64_t kMostRows = 64;   // of a batch that is captured: larger ones keep the device busy
constexpr size_t kMostCaptured = 8;  // kinds of batches that are kept
constexpr size_t kMostSeen = 64;     // kinds that came once
constexpr int64_t kPause = 64;       // calls between captures that take another's place
constexpr int64_t kLongPause = 1024;  // after a capture that CUDA refused: memory may be free again

// The captured batches of a model: those used last, and how they came to be.
class Captures {
 public:
  Captures(const Model& model, at::Device device)
      : model_(model), captures_(CaptureStream::of(device.index())) {}

  // The captured batch of this kind; null where there is none and none is due.
  std::shared_ptr<CapturedBatch> of(const Kind& kind, const Tensor& input, const Tensor& logits,
                                    Graphs wanted) {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (wanted != Graphs::automatic) return by_name(kind, input, logits, wanted);
    ++calls_;
    if (const auto held = find(held_, kind)) return held;
    if (calls_ < again_ || !comes_again(kind)) return nullptr;
    // Of more kinds than are kept, captures must not come to be most of the work.
    if (held_.size() == kMostCaptured && calls_ - captured_at_ < kPause) return nullptr;
    if (!asked_) {  // anew after a pause
      asked_ = true;
      report_.obstacle = obstacle_to_whole(input);
      whole_ = report_.obstacle.empty();
    }
    for (const bool whole : {true, false}) {
      if (whole && !whole_) continue;
      try {
        return keep(held_, kind, input, logits, whole);
      } catch (const std::exception& error) {
        report_.obstacle = text(whole ? "one graph: " : "graphs: ", error.what());
        if (whole) {
          whole_ = false;
        } else {
          again_ = calls_ + kLongPause;
          asked_ = false;
        }
      }
    }
    return nullptr;
  }

  GraphReport report() const {
    const std::lock_guard<std::mutex> guard(mutex_);
    GraphReport report = report_;
    report.held = static_cast<int64_t>(held_.size() + steps_.size() + wholes_.size());
    return report;
  }

 private:
  using Batches = std::list<std::shared_ptr<CapturedBatch>>;  // the one used last is the first

  static std::shared_ptr<CapturedBatch> find(Batches& batches, const Kind& kind) {
    const auto found = std::find_if(batches.begin(), batches.end(), [&](const auto& batch) {
      return batch->kind() == kind;
    });
    if (found == batches.end()) return nullptr;
    batches.splice(batches.begin(), batches, found);
    return batches.front();
  }

  std::shared_ptr<CapturedBatch> keep(Batches& batches, const Kind& kind, const Tensor& input,
                                      const Tensor& logits, bool whole) {
    const std::lock_guard<std::mutex> one_at_a_time(captures_.mutex);
    batches.push_front(
        std::make_shared<CapturedBatch>(model_, kind, input, logits, captures_.stream, whole));
    ++report_.captured;
    captured_at_ = calls_;
    if (batches.size() > kMostCaptured) batches.pop_back();
    return batches.front();
  }

  std::shared_ptr<CapturedBatch> by_name(const Kind& kind, const Tensor& input,
                                         const Tensor& logits, Graphs wanted) {
    const bool whole = wanted == Graphs::whole;
    Batches& batches = whole ? wholes_ : steps_;
    if (const auto held = find(batches, kind)) return held;
    if (whole) {
      const std::string obstacle = obstacle_to_whole(input);
      if (!obstacle.empty()) throw std::runtime_error(text("graphs is whole: ", obstacle));
    }
    return keep(batches, kind, input, logits, whole);
  }

  std::string obstacle_to_whole(const Tensor& input) {
    const std::lock_guard<std::mutex> one_at_a_time(captures_.mutex);
    return obstacle_to_switch_graph(input, captures_.stream);
  }

  // Whether this kind came before: what comes once is not worth a capture.
  bool comes_again(const Kind& kind) {
    if (std::find(seen_.begin(), seen_.end(), kind) != seen_.end()) return true;
    seen_.push_front(kind);
    if (seen_.size() > kMostSeen) seen_.pop_back();
    return false;
  }

  const Model& model_;
  CaptureStream& captures_;
  mutable std::mutex mutex_;
  Batches held_, steps_, wholes_;  // chosen here, and asked for by name
  std::list<Kind> seen_;
  int64_t calls_ = 0;
  int64_t captured_at_ = 0;  // the call of the last capture
  bool asked_ = false;
  bool whole_ = false;
  int64_t again_ = 0;  // the call before which nothing is captured
  GraphReport report_;
};

class CudaRunner final : public Runner {
 public:
  CudaRunner(const Model& model, at::Device device) : model_(model), captures_(model, device) {}

  void run(const Tensor& input, const std::vector<int64_t>& stops, const RunOptions& options,
           const Results& results) const override {
    const int64_t batch = input.size(0);
    if (batch == 0) return;
    const PlainOperations plain;
    const c10::cuda::CUDAGuard device(input.device());
    const int64_t bucket = bucket_of(batch);
    const bool by_name = options.graphs != Graphs::automatic && options.graphs != Graphs::off;
    if (by_name && bucket > kMostRows) {
      throw std::runtime_error(text("a batch of ", batch, " takes no graphs; they hold up to ",
                                    kMostRows));
    }
    if (options.graphs != Graphs::off && bucket <= kMostRows) {
      const Kind kind{stops, options.criterion, options.threshold, bucket,
                      model_.roomy(input.sizes().slice(1))};
      const auto captured = captures_.of(kind, input, results.logits, options.graphs);
      if (captured) return captured->run(input, options.lag, results);
    }
    Results own = results;
    if (!own.staying.defined()) {
      own.staying = at::zeros({static_cast<int64_t>(stops.size())},
                              results.depth.options().dtype(at::kInt));
    }
    SegmentPass pass(model_, exits_, input.contiguous(), stops, options, own);
    run_lagged(pass, stops.size(), batch, options.lag);
  }

  GraphReport graphs() const override { return captures_.report(); }

 private:
  const Model& model_;
  CudaExits exits_;
  mutable Captures captures_;
};

}  // namespace

std::unique_ptr<const Runner> runner(const Model& model, at::Device device) {
  check(device);
  check_head(model);
  return std::make_unique<CudaRunner>(model, device);
}

}  // namespace acn::device
