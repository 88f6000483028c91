// Half-precision numbers as storage. Conversions have no branches and no intrinsics, so that a loop
// over them vectorises for any target.
#pragma once

#include <cstdint>
#include <cstring>

#include "acn/target.h"

namespace acn {

struct Bf16 {
  uint16_t bits;
};

struct Fp16 {
  uint16_t bits;
};

namespace detail {

ACN_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

ACN_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace detail

ACN_INLINE float widen(Bf16 value) {
  return detail::float_of(static_cast<uint32_t>(value.bits) << 16);
}

ACN_INLINE float widen(Fp16 value) {
  constexpr uint32_t kExponent = 0x7c00u << 13;
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const uint32_t exponent = magnitude & kExponent;
  const uint32_t normal = magnitude + ((127u - 15u) << 23);
  const uint32_t special = magnitude + ((255u - 31u) << 23);  // inf, NaN
  // A subnormal's mantissa put behind the exponent of 2^-14; taking 2^-14 away again normalises.
  const float subnormal =
      detail::float_of(magnitude + (113u << 23)) - detail::float_of(113u << 23);
  uint32_t bits = exponent == kExponent ? special : normal;
  bits = exponent == 0 ? detail::bits_of(subnormal) : bits;
  return detail::float_of(bits | (value.bits & 0x8000u) << 16);
}

ACN_INLINE float widen(float value) { return value; }
ACN_INLINE double widen(double value) { return value; }

// Rounds to nearest, ties to even.
template <class T, class W>
ACN_INLINE T narrow(W value) {
  return static_cast<T>(value);
}

template <>
ACN_INLINE Bf16 narrow<Bf16, float>(float value) {
  const uint32_t bits = detail::bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? (bits >> 16 | 0x40u) : rounded)};
}

template <>
ACN_INLINE Fp16 narrow<Fp16, float>(float value) {
  const uint32_t bits = detail::bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal =
      (magnitude - ((127u - 15u) << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Added to 0.5, a number below 2^-14 is rounded by the adder to multiples of 2^-24.
  const uint32_t subnormal =
      detail::bits_of(detail::float_of(magnitude) + 0.5f) - detail::bits_of(0.5f);
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= (143u << 23) ? special : half;
  return {static_cast<uint16_t>(half | sign)};
}

template <>
ACN_INLINE Bf16 narrow<Bf16, double>(double value) {
  return narrow<Bf16>(static_cast<float>(value));
}

template <>
ACN_INLINE Fp16 narrow<Fp16, double>(double value) {
  return narrow<Fp16>(static_cast<float>(value));
}

// n numbers at once, with the processor's own instructions where it has them: the conversion of
// Fp16 by integer arithmetic costs more than the norm of the row.
void widen_row(const Fp16* from, float* to, int64_t n);
void narrow_row(const float* from, Fp16* to, int64_t n);

}  // namespace acn
