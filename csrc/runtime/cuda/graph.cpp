#include "graph.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include <map>
#include <memory>

// Of ATen/cuda/CUDAContextLight.h, which would ask for the headers of every library of CUDA.
namespace at::cuda {
void clearCublasWorkspaces();
}

namespace acn::device {

CaptureStream& CaptureStream::of(c10::DeviceIndex device) {
  static std::mutex mutex;
  static auto* const streams = new std::map<c10::DeviceIndex, std::unique_ptr<CaptureStream>>;
  const std::lock_guard<std::mutex> guard(mutex);
  std::unique_ptr<CaptureStream>& found = (*streams)[device];
  if (!found) {
    const c10::cuda::CUDAGuard on(device);
    cudaStream_t own = nullptr;
    // Work on the default stream, from whatever thread, is not to end up in a capture, nor end it.
    check(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking), "cudaStreamCreate");
    found.reset(new CaptureStream{{}, c10::cuda::getStreamFromExternal(own, device)});
  }
  return *found;
}

void GraphPool::during(c10::cuda::CUDAStream stream, const std::function<void()>& body) {
  namespace allocator = c10::cuda::CUDACachingAllocator;
  id_ = at::cuda::graph_pool_handle();
  const cudaStream_t own = stream.stream();
  allocator::beginAllocateToPool(stream.device_index(), id_,
                                 [own](cudaStream_t other) { return other == own; });
  device_ = stream.device_index();
  // cuBLAS keeps memory for each stream, which graphs of their own must not share: forgotten before
  // and after, it is allocated from the pool and stays in it.
  at::cuda::clearCublasWorkspaces();
  const auto end = [&] {
    at::cuda::clearCublasWorkspaces();
    allocator::endAllocateToPool(device_, id_);
  };
  try {
    body();
  } catch (...) {
    end();
    throw;
  }
  end();
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
