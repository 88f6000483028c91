// The current stream, errors and events of CUDA, for the files beside this one.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <stdexcept>

#include "acn/cuda/vector.h"
#include "acn/runtime/errors.h"

namespace acn::device {

// Throws std::runtime_error of what CUDA refused, and forgets the error.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(text(what, ": ", cudaGetErrorString(error)));
}

// The stream that ATen works on in this thread.
inline cudaStream_t stream_of(const at::Tensor& x) {
  return c10::cuda::getCurrentCUDAStream(x.get_device()).stream();
}

inline Dtype dtype_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return Dtype::f32;
    case at::kBFloat16: return Dtype::bf16;
    case at::kHalf: return Dtype::f16;
    default: return Dtype::f64;  // which every kernel refuses
  }
}

inline cuda::Vector vector_of(const at::Tensor& x) { return {x.const_data_ptr(), dtype_of(x)}; }

// A point in a stream.
class Event {
 public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  // The host waits, or `stream` does.
  void wait() { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
  void hold(cudaStream_t stream) {
    check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace acn::device
