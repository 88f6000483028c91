#include "acn/bias_gelu.h"

#include "acn/gelu.h"
#include "acn/row_math.h"

namespace acn {
namespace {

ACN_INLINE void gelu_rows(const BiasGelu& args, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  const Scratch<float> scratch(3, width);
  const float* bias = args.bias;
  if (!bias) {
    fill(scratch.row(0), 0.0f, width);
    bias = scratch.row(0);
  }
  for (int64_t r = begin; r < end; ++r) {
    const float* z = load(args.z, r, width, scratch.row(1));
    float* h = target(args.h, r, width, scratch.row(2));
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) h[i] = gelu(z[i] + bias[i]);
    store(h, args.h, r, width, width);
  }
}

ACN_CLONES void gelu_cloned(const BiasGelu& args, int64_t begin, int64_t end) {
  gelu_rows(args, begin, end);
}

}  // namespace

void bias_gelu(const BiasGelu& args, const ParallelFor& parallel) {
  parallel(args.rows, rows_per_piece(args.width),
           [&](int64_t begin, int64_t end) { gelu_cloned(args, begin, end); });
}

}  // namespace acn
