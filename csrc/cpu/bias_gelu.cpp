#include "acn/bias_gelu.h"

#include <cmath>

#include "acn/row_math.h"

namespace acn {
namespace {

// erf(x / sqrt(2)) as x P(x^2) / Q(x^2), least in the largest absolute error (1.4e-8) up to kEdge,
// from where on it is 1 in fp32. A loop without branches and calls, unlike the library's erf.
constexpr float kEdge = 5.5f;
constexpr float kP[] = {0.7978844692595655f,    0.06770525627599479f,  0.00935451909950373f,
                        0.0003376510060055941f, 1.2704235505846721e-05f, 4.549884721300886e-08f};
constexpr float kQ[] = {1.0f,                   0.25152187327876563f,  0.02864586114211107f,
                        0.0018844438233124878f, 7.364745468482117e-05f, 1.1975056575263844e-06f};

ACN_INLINE float polynomial(const float (&c)[6], float t) {
  return c[0] + t * (c[1] + t * (c[2] + t * (c[3] + t * (c[4] + t * c[5]))));
}

ACN_INLINE float gelu(float x) {
  const float t = x * x;
  const float inside = x * polynomial(kP, t) / polynomial(kQ, t);
  const float erf = std::abs(x) > kEdge ? std::copysign(1.0f, x) : inside;
  return 0.5f * x * (1.0f + erf);
}

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
