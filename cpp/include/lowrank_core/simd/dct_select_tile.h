// dct_select_tile: one tile of rows through a fast transform, in place, for cpp/src/levels/dct_select.cpp.
#pragma once

#include "lowrank_core/simd/dct_select.h"
#include "lowrank_core/simd/fft.h"

namespace lowrank::LRC_LEVEL {
namespace {

using dct::Basis;
using dct::Transform;

template <class T>
LRC_HD Vec<T> number(const T* z, int64_t vector) {
  return load_bits<Vec<T>>(z + vector * kLanes<T>);
}
template <class T>
LRC_HD void set_number(T* z, int64_t vector, const Vec<T>& x) {
  store_bits(z + vector * kLanes<T>, x);
}

template <class T>
LRC_HD void hadamard_pass4(T* z, int64_t sub) {
  for (int64_t j = 0; j < sub; ++j) {
    const Vec<T> x0 = number(z, j), x1 = number(z, j + sub), x2 = number(z, j + 2 * sub), x3 = number(z, j + 3 * sub);
    const Vec<T> a = x0 + x1, b = x0 - x1, c = x2 + x3, d = x2 - x3;
    set_number(z, j, a + c);
    set_number(z, j + sub, b + d);
    set_number(z, j + 2 * sub, a - c);
    set_number(z, j + 3 * sub, b - d);
  }
}

// Natural order in and out: the matrix is a product of passes that commute.
template <class T>
void hadamard(T* z, int64_t n) {
  if (n < 4) {
    if (n < 2) return;
    const Vec<T> a = number(z, 0), b = number(z, 1);
    set_number(z, 0, a + b);
    set_number(z, 1, a - b);
    return;
  }
  hadamard_pass4(z, n / 4);
  for (int64_t part = 0; part < 4; ++part) hadamard(z + part * (n / 4) * kLanes<T>, n / 4);
}

// ---- the last step of "dct2", and the first one of "dct3" ---------------------------------------------------------
// Loops copy the transform that they read, so that their stores cannot change it for all that the compiler knows.
// Coordinates k and n - k stand where the two parts of Fourier coefficient k do; 0 and n / 2 share coefficient 0.

template <class T>
using Numbers = dct::Couple<Vec<T>>;
template <class T>
using Quad = dct::Quad<Vec<T>>;

// The couples that a transform of n has, besides coefficient 0: 1 .. count of them share input two by two if n is even.
template <class T>
LRC_HD int64_t quads(const Transform<T>& t) {
  return t.n % 2 == 0 ? t.n / 4 : t.n / 2;
}

template <class T>
LRC_HD Numbers<T> point(const Transform<T>& t, const T* z, int64_t k) {
  const T* const at = z + t.points[k] * kPoint<T>;
  return {load_bits<Vec<T>>(at), load_bits<Vec<T>>(at + kLanes<T>)};
}
template <class T>
LRC_HD void set_point(const Transform<T>& t, T* z, int64_t k, const Vec<T>& re, const Vec<T>& im) {
  store_point(z + t.points[k] * kPoint<T>, Complex<T>{re, im});
}

template <class T>
LRC_HD Vec<T> first_amplitude(const Transform<T>& t) {
  return broadcast(T(__builtin_sqrt(1.0 / double(t.n))));
}

// Coordinates 0 and n / 2; without meaning the latter if n is odd.
template <class T>
LRC_HD Numbers<T> turned_first(const Transform<T>& t, const T* z) {
  const Numbers<T> x = point(t, z, 0);
  const Vec<T> amplitude = first_amplitude(t);
  if (t.n % 2 != 0) return {x.first * amplitude, Vec<T>{}};
  return {(x.first + x.second) * amplitude, (x.first - x.second) * amplitude};
}

// Coordinates (k, n - k) and (h - k, h + k), 1 <= k <= quads; the second couple without meaning if n is odd.
template <class T>
LRC_HD Quad<T> turned(const Transform<T>& t, const T* z, int64_t k) {
  const T* const w = t.turns + 4 * k;
  const Vec<T> c = broadcast(w[0]), s = broadcast(w[1]);
  const Numbers<T> x = point(t, z, k);
  if (t.n % 2 != 0) return {dct::turned(Numbers<T>{x.first + x.first, x.second + x.second}, c, s), Numbers<T>{}};
  const int64_t m = t.n / 2 - k;
  const Quad<T> v = dct::unpacked(Quad<T>{x, point(t, z, m)}, broadcast(w[2]), broadcast(w[3]));
  const T* const other = t.turns + 4 * m;
  return {dct::turned(v.k, c, s), dct::turned(v.m, broadcast(other[0]), broadcast(other[1]))};
}

template <class T>
void turn_all(const Transform<T>& transform, T* z) {
  const Transform<T> t = transform;
  const Numbers<T> first = turned_first(t, z);
  set_point(t, z, 0, first.first, first.second);
  for (int64_t k = 1; k <= quads(t); ++k) {
    const Quad<T> y = turned(t, z, k);
    if (t.n % 2 == 0) set_point(t, z, t.n / 2 - k, y.m.first, y.m.second);
    set_point(t, z, k, y.k.first, y.k.second);
  }
}

// One coordinate.
template <class T>
LRC_HD Vec<T> turned_one(const Transform<T>& t, const T* z, int64_t k) {
  const int64_t half = t.n / 2, low = smaller(k, t.n - k);
  if (k == 0) return turned_first(t, z).first;
  if (t.n % 2 != 0) return k == low ? turned(t, z, low).k.first : turned(t, z, low).k.second;
  if (k == half) return turned_first(t, z).second;
  const Quad<T> y = turned(t, z, smaller(low, half - low));
  const Numbers<T>& x = 2 * low <= half ? y.k : y.m;
  return k == low ? x.first : x.second;
}

// The transposed maps, with the parts in each other's place: what follows is a forward transform, and its result is
// that of the inverse one with the parts still exchanged.
template <class T>
void turn_back(const Transform<T>& transform, T* z) {
  const Transform<T> t = transform;
  const bool odd = t.n % 2 != 0;
  const Vec<T> amplitude = first_amplitude(t);
  const Numbers<T> first = point(t, z, 0);
  const Vec<T> y0 = first.first * amplitude, yh = first.second * amplitude;
  odd ? set_point(t, z, 0, Vec<T>{}, y0) : set_point(t, z, 0, y0 - yh, y0 + yh);
  for (int64_t k = 1; k <= quads(t); ++k) {
    const T* const w = t.turns + 4 * k;
    const Numbers<T> v = dct::turned(point(t, z, k), broadcast(w[0]), broadcast(w[1]));
    const int64_t m = odd ? t.n - k : t.n / 2 - k;
    if (odd) {
      set_point(t, z, m, Vec<T>{}, Vec<T>{});
      set_point(t, z, k, v.second + v.second, v.first + v.first);
    } else if (k == m) {
      set_point(t, z, k, -(v.second + v.second), v.first + v.first);
    } else {
      const T* const other = t.turns + 4 * m;
      const Numbers<T> f = dct::turned(point(t, z, m), broadcast(other[0]), broadcast(other[1]));
      const Quad<T> x = dct::packed(Quad<T>{v, f}, broadcast(w[2]), broadcast(w[3]));
      set_point(t, z, k, x.k.second, x.k.first);
      set_point(t, z, m, x.m.second, x.m.first);
    }
  }
}

// All but the last step of "dct2", which is left to whoever reads the coordinates: often few of them, or once.
template <class T>
void transform_tile(const Transform<T>& t, T* z) {
  switch (t.basis) {
    case Basis::kIdentity:
      return;
    case Basis::kHadamard:
      return hadamard(z, t.n);
    case Basis::kDct2:
      return transform_to_places(*t.plan, z);
    case Basis::kDct3:
      turn_back(t, z);
      return transform_from_places(*t.plan, z);
  }
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
