// half: bfloat16 and IEEE binary16 as storage types, converted in software so that host, device and every
// instruction-set level agree bit for bit. Arithmetic is always done in float.
#pragma once

#include <cstdint>
#include <cstring>

#include "lowrank_core/checks.h"

namespace lowrank {

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

LRC_HD uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

LRC_HD float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

// Orders like the magnitude, NaN above infinity.
LRC_HD uint32_t magnitude_bits(float x) { return float_bits(x) & 0x7FFFFFFFu; }

LRC_HD float to_float(bfloat16 x) { return bits_float(uint32_t(x.bits) << 16); }

// Round to nearest, ties to even; a NaN stays a quiet NaN.
LRC_HD bfloat16 to_bfloat16(float x) {
  const uint32_t u = float_bits(x);
  if (magnitude_bits(x) > 0x7F800000u) return {uint16_t((u >> 16) | 0x0040u)};
  return {uint16_t((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16)};
}

// The float next to x towards zero, its last bit set where x lies beyond it: rounded once more, to a type at least two
// bits narrower, it gives what one rounding of x gives. Source: Boldo, Melquiond, "Emulation of a FMA and correctly
// rounded sums: proved algorithms using rounding to odd", IEEE Trans. Computers 57 (2008), theorem 1.
LRC_HD float round_to_odd(double x) {
  const float nearest = float(x);
  const double back = double(nearest);
  if (back == x || x != x) return nearest;
  const bool away = (back < 0.0 ? -back : back) > (x < 0.0 ? -x : x);
  return bits_float((float_bits(nearest) - uint32_t(away)) | 1u);
}

LRC_HD bfloat16 to_bfloat16(double x) { return to_bfloat16(round_to_odd(x)); }

// Stochastic: of the two neighbours of x the one away from zero with the probability that makes x the mean, by 16
// random bits; a bfloat16 never moves, and what is finite stays finite.
LRC_HD bfloat16 to_bfloat16(float x, uint32_t random) {
  const uint32_t u = float_bits(x), infinity = 0x7F800000u;
  if ((u & 0x7FFFFFFFu) >= infinity) return to_bfloat16(x);
  const uint32_t raised = u + (random >> 16);
  return {uint16_t(((raised & 0x7FFFFFFFu) >= infinity ? u : raised) >> 16)};
}

LRC_HD float to_float(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1Fu;
  const uint32_t mantissa = x.bits & 0x3FFu;
  if (exponent == 0x1F) return bits_float(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0) return bits_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = float(mantissa) * 0x1p-24f;  // subnormal or zero: exact in float
  return bits_float(sign | float_bits(magnitude));
}

// Round to nearest, ties to even, with overflow to infinity and gradual underflow.
LRC_HD float16 to_float16(float x) {
  const uint32_t u = float_bits(x);
  const uint16_t sign = uint16_t((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {uint16_t(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return {uint16_t(sign | 0x7C00u)};  // >= 65520 rounds to infinity
  if (magnitude < 0x38800000u) {                                    // below 2^-14: a multiple of 2^-24
    // Adding 0.5 puts the unit of the last place of the sum at 2^-24, so the addition does the rounding.
    const float shifted = bits_float(magnitude) + 0.5f;
    return {uint16_t(sign | (float_bits(shifted) - 0x3F000000u))};
  }
  const uint32_t rebiased = magnitude - (112u << 23);
  return {uint16_t(sign | ((rebiased + 0xFFFu + ((rebiased >> 13) & 1u)) >> 13))};
}

LRC_HD float16 to_float16(double x) { return to_float16(round_to_odd(x)); }

LRC_HD float to_float(float x) { return x; }
LRC_HD double to_float(double x) { return x; }

// The type a storage type is computed in.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

// One rounding from the type a value was computed in, float or double, to the type it is stored in.
template <class T>
struct Store;
template <>
struct Store<float> {
  static LRC_HD float from(double x) { return float(x); }
};
template <>
struct Store<double> {
  static LRC_HD double from(double x) { return x; }
};
template <>
struct Store<bfloat16> {
  static LRC_HD bfloat16 from(float x) { return to_bfloat16(x); }
  static LRC_HD bfloat16 from(double x) { return to_bfloat16(x); }
};
template <>
struct Store<float16> {
  static LRC_HD float16 from(float x) { return to_float16(x); }
  static LRC_HD float16 from(double x) { return to_float16(x); }
};

}  // namespace lowrank
