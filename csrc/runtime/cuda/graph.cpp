#include "graph.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>

namespace acn::device {

void GraphPool::during(c10::cuda::CUDAStream stream, const std::function<void()>& body) {
  namespace allocator = c10::cuda::CUDACachingAllocator;
  id_ = at::cuda::graph_pool_handle();
  const cudaStream_t own = stream.stream();
  allocator::beginAllocateToPool(stream.device_index(), id_,
                                 [own](cudaStream_t other) { return other == own; });
  device_ = stream.device_index();
  try {
    body();
  } catch (...) {
    allocator::endAllocateToPool(device_, id_);
    throw;
  }
  allocator::endAllocateToPool(device_, id_);
}

GraphPool::~GraphPool() {
  if (device_ >= 0) c10::cuda::CUDACachingAllocator::releasePool(device_, id_);
}

void capture_into(cudaGraph_t graph, cudaStream_t stream, const std::function<void()>& body) {
#if CUDART_VERSION >= 12030
  // Other threads may allocate meanwhile.
  check(cudaStreamBeginCaptureToGraph(stream, graph, nullptr, nullptr, 0,
                                      cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCaptureToGraph");
  cudaGraph_t captured = nullptr;
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(stream, &captured);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture");
#else
  (void)graph, (void)stream, (void)body;
  throw std::runtime_error("graphs need a build with CUDA 12.3 or later");
#endif
}

ReadyGraph::ReadyGraph(const Graph& graph) {
  check(cudaGraphInstantiateWithFlags(&ready_, graph.get(), 0), "cudaGraphInstantiate");
}

}  // namespace acn::device
