// Sizes that many batches share, so that few kinds of them are ever captured or planned.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace acn {

// The smallest power of two that holds `count`, from 1 on.
inline int64_t bucket_of(int64_t count) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(count, 1))));
}

}  // namespace acn
