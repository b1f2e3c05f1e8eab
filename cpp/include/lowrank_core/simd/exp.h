// exp: the exponential of a vector of numbers that are not positive, for softmax.
#pragma once

#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

template <class T>
struct ExpConstants;
// `terms` of the series suffice on |r| <= ln 2 / 2: the next one is below half a unit. Adding `magic` leaves the
// nearest integer in the lowest bits. `high` has trailing zeros, so that n * high is exact.
template <>
struct ExpConstants<float> {
  using Bits = int32_t;
  static constexpr int terms = 8, mantissa = 23;
  static constexpr float magic = 12582912.0f, lowest = -87.0f, high = 0.693359375f, low = -2.12194440e-4f;
};
template <>
struct ExpConstants<double> {
  using Bits = int64_t;
  static constexpr int terms = 14, mantissa = 52;
  static constexpr double magic = 6755399441055744.0, lowest = -708.0;
  static constexpr double high = 0.693147180369123816490, low = 1.90821492927058770002e-10;
};

// exp(x) for x <= 0 within a few units; 0 below `lowest`, also for -infinity.
template <class T>
LRC_INLINE Vec<T> exp_negative(Vec<T> x) {
  using C = ExpConstants<T>;
  using Bits = Vec<typename C::Bits>;
  const Vec<T> lowest = broadcast(C::lowest), magic = broadcast(C::magic);
  const Vec<T> clamped = x > lowest ? x : lowest;
  const Vec<T> shifted = multiply_add(clamped, broadcast(T(1.4426950408889634)), magic);
  const Vec<T> n = shifted - magic;
  const Vec<T> r = multiply_add(n, broadcast(-C::low), multiply_add(n, broadcast(-C::high), clamped));
  T inverse[C::terms] = {T(1)};
  for (int k = 1; k < C::terms; ++k) inverse[k] = inverse[k - 1] / T(k);
  Vec<T> sum = broadcast(inverse[C::terms - 1]);
#pragma GCC unroll 16
  for (int k = C::terms - 2; k >= 0; --k) sum = multiply_add(sum, r, broadcast(inverse[k]));
  const Vec<T> scaled = bits_as<Vec<T>>(bits_as<Bits>(sum) + (bits_as<Bits>(shifted) << C::mantissa));
  return x > lowest ? scaled : Vec<T>{};
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
