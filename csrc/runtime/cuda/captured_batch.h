// Batches of one kind from CUDA graphs, whose launch costs the host next to nothing.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "../steps.h"
#include "exits.h"
#include "graph.h"

namespace acn::device {

class CapturedBatch {
 public:
  // Captures on `stream`. With `whole` one graph holds all steps and the device picks among them
  // (switch_graph.h); else there is one for every step and number of rows, and the host picks.
  // Throws where CUDA refuses.
  CapturedBatch(const Model& model, const Kind& kind, const at::Tensor& input,
                const at::Tensor& logits, c10::cuda::CUDAStream stream, bool whole);
  ~CapturedBatch();

  const Kind& kind() const { return steps_->kind(); }

  // On the current stream; one batch after the other, from whatever threads they come. Steps of
  // their own wait for the host no more than `lag` exits ask.
  void run(const at::Tensor& input, int64_t lag, const Results& results);

 private:
  void queue(const at::Tensor& input, int64_t lag, const Results& results, cudaStream_t stream);

  CudaExits exits_;
  std::mutex mutex_;
  GraphPool pool_;  // outlives the graphs
  std::unique_ptr<Steps> steps_;
  Event done_;
  std::map<std::pair<size_t, int64_t>, ReadyGraph> graphs_;  // by stop and rows
  std::unique_ptr<ReadyGraph> whole_;
};

}  // namespace acn::device
