// CUDA graphs of what ATen and the kernels queue, and the memory that they keep to themselves.
#pragma once

#include <c10/core/Allocator.h>

#include <functional>
#include <mutex>

#include "stream.h"

namespace acn::device {

// Where captures are made, one after the other: nothing else is queued there, from no thread.
struct CaptureStream {
  std::mutex mutex;
  c10::cuda::CUDAStream stream;

  // That of a device, which stays for as long as the process does.
  static CaptureStream& of(c10::DeviceIndex device);
};

// What a capture allocates comes from here, and stays at its place for as long as the pool lives.
class GraphPool {
 public:
  // Allocations on `stream` go to the pool while body runs, with those that cuBLAS makes for
  // itself; no more than once.
  void during(c10::cuda::CUDAStream stream, const std::function<void()>& body);

  GraphPool() = default;
  ~GraphPool();
  GraphPool(const GraphPool&) = delete;
  GraphPool& operator=(const GraphPool&) = delete;

 private:
  c10::DeviceIndex device_ = -1;
  c10::MempoolId_t id_{0, 0};
};

// Puts what body queues on `stream`, the current one, into `graph`, behind nothing. Where body
// throws, the capture is given up.
void capture_into(cudaGraph_t graph, cudaStream_t stream, const std::function<void()>& body);

// A graph under construction.
class Graph {
 public:
  Graph() { check(cudaGraphCreate(&graph_, 0), "cudaGraphCreate"); }
  ~Graph() { cudaGraphDestroy(graph_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  cudaGraph_t get() const { return graph_; }

 private:
  cudaGraph_t graph_ = nullptr;
};

// One that can be launched, time after time, one after the other.
class ReadyGraph {
 public:
  explicit ReadyGraph(const Graph& graph);
  ~ReadyGraph() { cudaGraphExecDestroy(ready_); }
  ReadyGraph(const ReadyGraph&) = delete;
  ReadyGraph& operator=(const ReadyGraph&) = delete;

  void launch(cudaStream_t stream) const {
    check(cudaGraphLaunch(ready_, stream), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t ready_ = nullptr;
};

}  // namespace acn::device
