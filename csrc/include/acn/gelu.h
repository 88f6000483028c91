// The exact GELU of one value, as a line of arithmetic that loops over it are vectorised with.
#pragma once

#include <cmath>

#include "acn/target.h"

namespace acn {

// erf(x / sqrt(2)) as x P(x^2) / Q(x^2), least in the largest absolute error (1.4e-8) up to kEdge,
// from where on it is 1 in fp32. Without branches and calls, unlike the library's erf.
struct Gelu {
  static constexpr float kEdge = 5.5f;
  static constexpr float kP[] = {0.7978844692595655f,    0.06770525627599479f,
                                 0.00935451909950373f,   0.0003376510060055941f,
                                 1.2704235505846721e-05f, 4.549884721300886e-08f};
  static constexpr float kQ[] = {1.0f,                   0.25152187327876563f,
                                 0.02864586114211107f,   0.0018844438233124878f,
                                 7.364745468482117e-05f, 1.1975056575263844e-06f};
};

ACN_INLINE float polynomial(const float (&c)[6], float t) {
  return c[0] + t * (c[1] + t * (c[2] + t * (c[3] + t * (c[4] + t * c[5]))));
}

ACN_INLINE float gelu(float x) {
  const float t = x * x;
  const float inside = x * polynomial(Gelu::kP, t) / polynomial(Gelu::kQ, t);
  const float erf = std::abs(x) > Gelu::kEdge ? std::copysign(1.0f, x) : inside;
  return 0.5f * x * (1.0f + erf);
}

}  // namespace acn
