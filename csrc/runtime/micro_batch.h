// How many samples go through a segment together.
#pragma once

#include <cstdint>

#include "acn/runtime/config.h"

namespace acn {

// As many as keep what a layer reads and writes in a second-level cache of `cache` bytes beside
// its weights. Where the weights alone are larger, as many as make what they write about as large
// as the weights, which are read once for all of them. In any case enough rows for a matrix
// product to be worth the packing of its weights.
int64_t micro_batch_for(const Config& config, int64_t element_size, int64_t cache);

// Samples a group for `live` of them: at most `most`, and as many groups as share the threads
// evenly; all in one, of which each thread takes a piece, where the threads get only a few each.
int64_t group_size(int64_t live, int64_t most, int64_t threads);

// The second-level cache of this machine's cores, in bytes.
int64_t cache_size();

}  // namespace acn
