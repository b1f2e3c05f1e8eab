// normal: standard normal numbers as a function of their place. Box and Muller 1958 (doi:10.1214/aoms/1177706645), the
// cosine alone.
//
// Nothing here but integers and sums, products, divisions and roots that are rounded correctly: the same bits on every
// device and at every level (tier D0). No step has a branch, so that compilers make vectors of a loop.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "lowrank_core/philox.h"
#include "lowrank_core/view.h"

namespace lowrank::normal {

constexpr uint32_t kStream = 5;  // docs/numerics.md; two words for each number

LRC_HD uint64_t double_bits(double x) {
  uint64_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

LRC_HD double bits_double(uint64_t u) {
  double x;
  memcpy(&x, &u, sizeof x);
  return x;
}

// An integer below 2^52, by its bits behind those of 2^52: before AVX-512 no vector instruction converts 64 bits.
LRC_HD double exactly(uint64_t n) { return bits_double(n | 0x4330000000000000u) - 0x1p52; }

// -log(n / 2^32) for 1 <= n <= 2^32 to a few units: with n = m 2^k, m in [1 / sqrt(2), sqrt(2)), log m is 2 artanh s of
// s = (m - 1) / (m + 1). The first term of the series that is left out is below 2^-60.
LRC_HD double minus_log(uint64_t n) {
  constexpr uint64_t one = 0x3FF0000000000000u, root_half = 0x3FE6A09E667F3BCDu, fraction = 0x000FFFFFFFFFFFFFu;
  const uint64_t bits = double_bits(exactly(n)) + (one - root_half);
  const double k = exactly(bits >> 52) - (1023.0 + 32.0), m = bits_double((bits & fraction) + root_half);
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double series = 1.0 / 21.0;
  for (int odd = 19; odd > 0; odd -= 2) series = series * z + 1.0 / double(odd);
  return k * -0.6931471805599453 - 2.0 * s * series;
}

// cos(2 pi n / 2^32) for 0 <= n < 2^32 to a few units, also where it is small: it is the sine of the angle to the
// nearest zero, whose place is an integer, too. The first term of the series that is left out is below 2^-59.
LRC_HD double cosine(uint64_t n) {
  const double from_half = exactly(n) - 0x1p31;
  const double place = bits_double(double_bits(from_half) & 0x7FFFFFFFFFFFFFFFu) - 0x1p30;
  const double x = place * (3.141592653589793 * 0x1p-31), z = x * x;
  double series = 1.0;
  for (int k = 20; k > 0; k -= 2) series = 1.0 - series * z * (1.0 / double(k * (k + 1)));
  return x * series;
}

// Of two random words. Its magnitude is at most sqrt(64 ln 2), 6.66.
LRC_HD double from_words(uint32_t first, uint32_t second) {
  return sqrt(2.0 * minus_log(uint64_t(first) + 1)) * cosine(second);
}

// A matrix [m, n], float32 or float64 and contiguous, for the numbers of `seed` by their row-major place, over
// `divisor`.
struct Draw {
  View out;
  uint64_t seed;
  double divisor = 1.0;
};

// Fills each of a list, side by side.
void fill(const std::vector<Draw>& draws);

}  // namespace lowrank::normal
