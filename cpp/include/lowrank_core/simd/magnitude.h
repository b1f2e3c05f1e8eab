// magnitude: the largest magnitude of a line of numbers, by their bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "lowrank_core/half.h"

namespace lowrank::LRC_LEVEL {
namespace {

// Without the sign, the bits of floating-point numbers are ordered as their magnitudes are, with infinity above all
// numbers and NaN above infinity. Signed, because every instruction set compares signed integers.
template <int kBytes>
struct SignedBits;
template <>
struct SignedBits<2> {
  using type = int16_t;
};
template <>
struct SignedBits<4> {
  using type = int32_t;
};
template <>
struct SignedBits<8> {
  using type = int64_t;
};

// NaN if there is one among the n numbers.
template <class T>
LRC_INLINE T largest_magnitude_of(const T* x, int64_t n) {
  using Bits = typename SignedBits<sizeof(T)>::type;
  constexpr Bits magnitude = Bits(~(uint64_t(1) << (8 * sizeof(T) - 1)));
  Bits largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    Bits bits;
    memcpy(&bits, x + i, sizeof bits);
    bits = Bits(bits & magnitude);
    largest = bits > largest ? bits : largest;
  }
  T number;
  memcpy(&number, &largest, sizeof number);
  return number;
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
