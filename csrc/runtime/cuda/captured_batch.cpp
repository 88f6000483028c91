#include "captured_batch.h"

#include "../lagged.h"
#include "switch_graph.h"

namespace acn::device {

CapturedBatch::CapturedBatch(const Model& model, const Kind& kind, const at::Tensor& input,
                             const at::Tensor& logits, c10::cuda::CUDAStream stream, bool whole) {
  done_.record(stream_of(input));
  done_.hold(stream.stream());  // the weights may be on their way
  const c10::cuda::CUDAStreamGuard guard(stream);
  steps_ = std::make_unique<Steps>(model, exits_, kind, input, logits);
  pool_.during(stream, [&] {
    if (whole) {
      whole_ = switch_graph(*steps_, stream.stream());
      return;
    }
    steps_->for_each([&](size_t s, int64_t rows) {
      const Graph graph;
      capture_into(graph.get(), stream.stream(), [&] { steps_->queue(s, rows); });
      graphs_.try_emplace({s, rows}, graph);
    });
  });
  done_.record(stream.stream());
}

CapturedBatch::~CapturedBatch() {
  try {
    done_.wait();  // nothing is freed that still runs
  } catch (const std::exception&) {
    // the device is gone, and with it what ran
  }
}

void CapturedBatch::run(const at::Tensor& input, int64_t lag, const Results& results) {
  const std::lock_guard<std::mutex> one_at_a_time(mutex_);
  const cudaStream_t stream = stream_of(input);
  done_.hold(stream);
  try {
    queue(input, lag, results, stream);
  } catch (...) {
    done_.record(stream);  // what was queued before it still runs
    throw;
  }
  done_.record(stream);
}

void CapturedBatch::queue(const at::Tensor& input, int64_t lag, const Results& results,
                          cudaStream_t stream) {
  steps_->load(input);
  if (whole_) {
    whole_->launch(stream);
  } else {
    StepPass pass(*steps_, exits_, [&](size_t s, int64_t rows) {
      graphs_.at({s, rows}).launch(stream);
    });
    run_lagged(pass, kind().stops.size(), kind().rows, lag);
  }
  steps_->unload(input.size(0), results);
}

}  // namespace acn::device
