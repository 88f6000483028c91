// A softmax in parts, and how sure it is.
#pragma once

#include <cmath>

#include "acn/criterion.h"
#include "row_norm.cuh"

namespace acn::cuda {

// Softmax over some classes: with t = z - top and p = e^t, the entropy is
// log(sum p) - sum(p t) / sum(p), the largest probability 1 / sum(p). No large terms.
struct Softmax {
  float top = -INFINITY;
  float next = -INFINITY;  // the largest but one
  float total = 0.0f;      // sum p
  float moment = 0.0f;     // sum p t

  static __device__ __forceinline__ Softmax of(float z) {
    // NaN and +inf make the sum NaN and with it all that is read from it.
    if (z == -INFINITY) return {z, z, 0.0f, 0.0f};
    return {z, -INFINITY, z - z == 0.0f ? 1.0f : NAN, 0.0f};
  }

  // Takes other classes in.
  __device__ __forceinline__ void add(Softmax other) {
    const float before = top;
    raise(other.top, other.next);
    rescale(before, top);
    other.rescale(other.top, top);
    total += other.total;
    moment += other.moment;
  }

  // Takes in what kLanes neighbours of a warp hold, the same to the bit in each of them. All know
  // the top before the first exponential.
  template <int kLanes>
  __device__ __forceinline__ void add_lanes() {
    const float before = top;
#pragma unroll
    for (int lane = kLanes / 2; lane > 0; lane /= 2) {
      const float other_top = __shfl_xor_sync(0xffffffffu, top, lane);
      const float other_next = __shfl_xor_sync(0xffffffffu, next, lane);
      raise(other_top, other_next);
    }
    rescale(before, top);
    float sums[2] = {total, moment};
    lane_sums<kLanes>(sums);
    total = sums[0];
    moment = sums[1];
  }

  // What the criterion compares; NaN where no class can be.
  __device__ __forceinline__ float certainty(Criterion criterion) const {
    if (total == 0.0f) return NAN;
    if (criterion == Criterion::entropy) return logf(total) - moment / total;
    return (criterion == Criterion::margin ? 1.0f - expf(next - top) : 1.0f) / total;
  }

 private:
  __device__ __forceinline__ void raise(float other_top, float other_next) {
    next = fmaxf(fminf(top, other_top), fmaxf(next, other_next));
    top = fmaxf(top, other_top);
  }

  // Makes sums relative to one top relative to another. Without the choice, classes that cannot be
  // would make 0 * -inf of what is 0.
  __device__ __forceinline__ void rescale(float from, float to) {
    const float t = total == 0.0f ? 0.0f : from - to;
    const float p = expf(t);
    moment = p * (moment + t * total);
    total = p * total;
  }
};

}  // namespace acn::cuda
