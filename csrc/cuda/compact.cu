#include "acn/cuda/compact.h"

#include <climits>

#include "launch.cuh"

namespace acn::cuda {
namespace {

constexpr int kScan = 1024;
constexpr int kCopy = 256;

// One block walks over the samples, kScan at a time.
__global__ void __launch_bounds__(kScan)
    places_kernel(Places args) {
  __shared__ int32_t of_warp[kScan / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int32_t before = 0;  // staying samples of earlier rounds
  for (int64_t begin = 0; begin < args.samples; begin += kScan) {
    const int64_t sample = begin + threadIdx.x;
    const bool stay = sample < args.samples && args.stays[sample];
    const unsigned votes = __ballot_sync(0xffffffffu, stay);
    if (lane == 0) of_warp[warp] = __popc(votes);
    __syncthreads();
    int32_t place = before + __popc(votes & ((1u << lane) - 1u));
    for (int w = 0; w < kScan / 32; ++w) {
      if (w < warp) place += of_warp[w];
      before += of_warp[w];
    }
    if (sample < args.samples) args.places[sample] = stay ? place : -1;
    if (stay && place < args.kept) args.to[place] = args.from[sample];
    __syncthreads();
  }
  for (int64_t i = before + threadIdx.x; i < args.kept; i += kScan) args.to[i] = -1;
  if (threadIdx.x == 0 && args.count) *args.count = before;
}

// threadIdx.y takes a sample, threadIdx.x walks over it.
template <class Unit>
__global__ void __launch_bounds__(kCopy) compact_kernel(Compaction args) {
  const int64_t units = args.bytes / static_cast<int64_t>(sizeof(Unit));
  const int64_t samples = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  for (int64_t sample = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
       sample < args.samples; sample += samples) {
    const int64_t place = args.places[sample];
    if (place < 0 || place >= args.kept) continue;
    const char* bytes = static_cast<const char*>(args.from) + sample * args.stride;
    const Unit* from = reinterpret_cast<const Unit*>(bytes);
    Unit* to = reinterpret_cast<Unit*>(static_cast<char*>(args.to) + place * args.bytes);
#pragma unroll 4
    for (int64_t i = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; i < units;
         i += step) {
      to[i] = from[i];
    }
  }
}

template <class Unit>
cudaError_t launch(const Compaction& args, cudaStream_t stream) {
  constexpr int64_t kUnitsPerThread = 4;
  const int64_t units = args.bytes / static_cast<int64_t>(sizeof(Unit));
  unsigned along = 1;
  while (along < kCopy && along * kUnitsPerThread < units) along *= 2;
  const dim3 block(along, kCopy / along);
  const int64_t pieces = (units + along * kUnitsPerThread - 1) / (along * kUnitsPerThread);
  const dim3 grid(blocks_for(args.samples, block.y),
                  static_cast<unsigned>(std::min<int64_t>(pieces, 65535)));
  compact_kernel<Unit><<<grid, block, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t compaction_places(const Places& args, cudaStream_t stream) {
  if (args.samples > INT_MAX) return cudaErrorInvalidValue;
  places_kernel<<<1, kScan, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t compact(const Compaction& args, cudaStream_t stream) {
  if (args.samples == 0 || args.kept == 0 || args.bytes == 0) return cudaSuccess;
  // The widest access that every sample of both sides allows, down to single bytes.
  const uint64_t all = reinterpret_cast<uintptr_t>(args.from) |
                       reinterpret_cast<uintptr_t>(args.to) |
                       static_cast<uint64_t>(args.stride) | static_cast<uint64_t>(args.bytes);
  if (all % 16 == 0) return launch<uint4>(args, stream);
  if (all % 8 == 0) return launch<uint2>(args, stream);
  if (all % 4 == 0) return launch<uint32_t>(args, stream);
  if (all % 2 == 0) return launch<uint16_t>(args, stream);
  return launch<uint8_t>(args, stream);
}

}  // namespace acn::cuda
