// rounding: how a real number becomes an integer code, the same bits on host, device and at every instruction-set
// level. Nothing here but sums, products, comparisons and the correctly rounded division and floor; no fused
// multiply-add.
#pragma once

#include <math.h>

#include <cstdint>

#include "lowrank_core/half.h"

namespace lowrank::rounding {

// The nearest integer, ties to the upper one. Exact for |x| < 2^22, unlike floor(x + 0.5), which rounds the sum.
LRC_HD int32_t nearest(float x) { return (int32_t(floorf(2.0f * x)) + 1) >> 1; }

// floor(x) or the next integer, as a float, with x as its mean for `uniform` in [0, 1); an integer never moves.
LRC_HD float stochastic(float x, float uniform) {
  const float below = floorf(x);
  return below + (uniform < x - below ? 1.0f : 0.0f);
}

// NaN becomes `low`, so that a conversion to an integer is always defined.
LRC_HD float clamp(float x, float low, float high) {
  const float raised = x > low ? x : low;
  return raised < high ? raised : high;
}

// x / scale by multiplications, for one scale and many x; 0 where the scale is 0. The power of two keeps the inverse of
// a subnormal scale finite; where 1 / scale is a normal number it changes no bit.
struct Divider {
  float power, inverse;

  LRC_HD float operator()(float x) const { return x * power * inverse; }
};

LRC_HD Divider divider(float scale) {
  const int32_t exponent = int32_t(float_bits(scale) >> 23 & 0xFFu);
  const int32_t opposite = exponent >= 254 ? 1 : 254 - exponent;
  const float power = bits_float(uint32_t(opposite) << 23);
  if (scale == 0.0f) return {0.0f, 0.0f};
  return {power, 1.0f / (scale * power)};
}

// Order-preserving integers: extremes of floats, NaN and infinity included, by integer minima and maxima, which
// compilers turn into vector instructions. Its own inverse.
LRC_HD int32_t flip(int32_t bits) { return bits ^ (bits >> 31 & 0x7FFFFFFF); }
LRC_HD int32_t ordered(float x) { return flip(int32_t(float_bits(x))); }
LRC_HD float from_ordered(int32_t key) { return bits_float(uint32_t(flip(key))); }
LRC_HD bool finite(float x) { return magnitude_bits(x) < 0x7F800000u; }

// The smallest bfloat16 that is not below x, the largest that is not above; beyond the finite ones, the last of them.
LRC_HD bfloat16 bfloat16_above(float x) {
  const uint32_t u = float_bits(x);
  if (u >> 31) return {uint16_t(u >> 16)};
  const uint32_t up = (u + 0xFFFFu) >> 16;
  return {uint16_t(up < 0x7F7Fu ? up : 0x7F7Fu)};
}
LRC_HD bfloat16 bfloat16_below(float x) {
  const bfloat16 mirrored = bfloat16_above(-x);
  return {uint16_t(mirrored.bits ^ 0x8000u)};
}

}  // namespace lowrank::rounding
