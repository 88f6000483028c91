// Runs CUDA kernels on the CPU, included before a .cu file whose launches were rewritten to
// acn_emulation::launch: the threads of a block are fibers that take turns, and change where a
// warp or the block waits. Slow, exact about barriers, good for the numbers of small inputs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <ucontext.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#undef __shared__
#undef __align__
#undef __forceinline__
#undef __launch_bounds__
#define __shared__ static  // blocks run one after the other
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __forceinline__ inline
#define __launch_bounds__(...)

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace acn_emulation {

constexpr size_t kStack = 256 * 1024;

// Where threads wait for each other.
struct Barrier {
  int arrived = 0;
  int members = 0;  // that have not ended
  int64_t round = 0;
};

struct Thread {
  ucontext_t context;
  uint3 index;
  int warp = 0;
  int lane = 0;
  bool ended = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Barrier> warps;
  std::vector<std::array<uint32_t, 32>> exchanged;
  Barrier all;
  ucontext_t scheduler;
  Thread* running = nullptr;
  const std::function<void()>* kernel = nullptr;
  bool moved = false;
};

inline Block* block = nullptr;

inline void release_if_complete(Barrier& barrier) {
  if (barrier.members > 0 && barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.round;
    block->moved = true;
  }
}

inline void wait(Barrier& barrier) {
  const int64_t round = barrier.round;
  ++barrier.arrived;
  block->moved = true;
  release_if_complete(barrier);
  while (barrier.round == round) {
    Thread* self = block->running;
    swapcontext(&self->context, &block->scheduler);
  }
}

inline void start() {
  (*block->kernel)();
  Thread* self = block->running;
  self->ended = block->moved = true;
  for (Barrier* barrier : {&block->all, &block->warps[self->warp]}) {
    --barrier->members;
    release_if_complete(*barrier);
  }
  setcontext(&block->scheduler);
}

inline void run_block(const std::function<void()>& kernel) {
  const int count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  Block now;
  now.threads = std::vector<Thread>(count);
  now.warps = std::vector<Barrier>((count + 31) / 32);
  now.exchanged.resize(now.warps.size());
  now.kernel = &kernel;
  now.all.members = count;
  block = &now;
  for (int i = 0; i < count; ++i) {
    Thread& thread = now.threads[i];
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    thread.warp = i / 32;
    thread.lane = i % 32;
    ++now.warps[thread.warp].members;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, start, 0);
  }
  for (int left = count; left > 0;) {
    now.moved = false;
    left = 0;
    for (Thread& thread : now.threads) {
      if (thread.ended) continue;
      now.running = &thread;
      threadIdx = thread.index;
      swapcontext(&now.scheduler, &thread.context);
      left += !thread.ended;
    }
    if (left > 0 && !now.moved) {
      std::fprintf(stderr, "threads of a block wait for each other at different barriers\n");
      std::abort();
    }
  }
}

struct Shape {
  dim3 grid;
  dim3 threads;
  Shape(dim3 grid, dim3 threads, size_t, cudaStream_t) : grid(grid), threads(threads) {}
};

inline void launch(const Shape& shape, const std::function<void()>& kernel) {
  gridDim = shape.grid;
  blockDim = shape.threads;
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = {x, y, 0};
      run_block(kernel);
    }
  }
}

// What every lane of the warp offers, as each of them sees it.
inline std::array<uint32_t, 32> exchange(uint32_t mine) {
  Thread* self = block->running;
  Barrier& warp = block->warps[self->warp];
  block->exchanged[self->warp][self->lane] = mine;
  wait(warp);
  const std::array<uint32_t, 32> all = block->exchanged[self->warp];
  wait(warp);
  return all;
}

}  // namespace acn_emulation

inline void __syncthreads() { acn_emulation::wait(acn_emulation::block->all); }

inline float __shfl_xor_sync(unsigned, float value, int lanes) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const int lane = acn_emulation::block->running->lane;
  bits = acn_emulation::exchange(bits)[lane ^ lanes];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned __ballot_sync(unsigned, bool vote) {
  const auto votes = acn_emulation::exchange(vote);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= votes[lane] << lane;
  return bits;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

inline int atomicAdd(int* at, int value) {
  *at += value;
  return *at - value;
}

// A conditional node's handle is a pointer to its value.
inline void cudaGraphSetConditional(unsigned long long handle, unsigned value) {
  *reinterpret_cast<uint32_t*>(handle) = value;
}

// The runtime that the launchers call.
extern "C" inline cudaError_t cudaGetLastError() { return cudaSuccess; }
extern "C" inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}
