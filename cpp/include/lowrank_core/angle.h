// angle: points of the unit circle at rational turns. The angle is reduced in integers, so that cos(pi k (2i + 1) / 2n)
// is right however large k (2i + 1) is: a float32 phase has lost its last digit of turn at n = 4096.
#pragma once

#include <cmath>
#include <cstdint>

#include "lowrank_core/checks.h"

namespace lowrank {

struct CirclePoint {
  double cos, sin;
};

// (cos, sin) of 2 pi t / n, n >= 1, |t| < 2^60. Folded into the first eighth of a turn: multiples of a quarter are
// exact, and points that mirror each other are equal to the bit.
LRC_HD CirclePoint circle_point(int64_t t, int64_t n) {
  constexpr double quarter_pi = 0.78539816339744830961566084581987572;
  int64_t eighths = t % n;
  if (eighths < 0) eighths += n;
  eighths *= 8;  // of a turn, times n
  const bool lower = eighths > 4 * n;
  if (lower) eighths = 8 * n - eighths;
  const bool left = eighths > 2 * n;
  if (left) eighths = 4 * n - eighths;
  const bool steep = eighths > n;
  if (steep) eighths = 2 * n - eighths;
  const double angle = quarter_pi * (double(eighths) / double(n));
  const double along = steep ? ::sin(angle) : ::cos(angle), up = steep ? ::cos(angle) : ::sin(angle);
  return {left ? -along : along, lower ? -up : up};
}

// Entry (k, i) of the orthonormal n x n DCT-II matrix C: s_k cos(pi k (2i + 1) / 2n), s_0² = 1/n, s_k² = 2/n. Its rows
// are the atoms of the basis "dct2", its columns those of "dct3". n < 2^29.
LRC_HD double dct2_entry(int64_t n, int64_t k, int64_t i) {
  const double amplitude = ::sqrt((k == 0 ? 1.0 : 2.0) / double(n));
  return amplitude * circle_point(k * (2 * i + 1), 4 * n).cos;
}

}  // namespace lowrank
