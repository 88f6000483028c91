// What an exit compares with its threshold.
#pragma once

namespace acn {

enum class Criterion {
  entropy,      // of the softmax in nats, below the threshold
  probability,  // the largest one, above the threshold
  margin,       // of the largest probability over the next, above the threshold
};

}  // namespace acn
