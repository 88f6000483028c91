#include "acn/half.h"

#include "acn/target.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define ACN_HAVE_F16C_PATH 1
#include <immintrin.h>
#endif

namespace acn {
namespace {

ACN_CLONES void widen_portable(const Fp16* from, float* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
}

ACN_CLONES void narrow_portable(const float* from, Fp16* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<Fp16>(from[i]);
}

#ifdef ACN_HAVE_F16C_PATH
bool has_f16c() {
  static const bool has = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
  return has;
}

__attribute__((target("avx,f16c"))) void widen_f16c(const Fp16* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  for (; i < n; ++i) to[i] = _cvtsh_ss(from[i].bits);
}

__attribute__((target("avx,f16c"))) void narrow_f16c(const float* from, Fp16* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
  for (; i < n; ++i) to[i].bits = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
}
#endif

}  // namespace

void widen_row(const Fp16* from, float* to, int64_t n) {
#ifdef ACN_HAVE_F16C_PATH
  if (has_f16c()) return widen_f16c(from, to, n);
#endif
  widen_portable(from, to, n);
}

void narrow_row(const float* from, Fp16* to, int64_t n) {
#ifdef ACN_HAVE_F16C_PATH
  if (has_f16c()) return narrow_f16c(from, to, n);
#endif
  narrow_portable(from, to, n);
}

}  // namespace acn
