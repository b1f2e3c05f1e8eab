// tile: one tile of rows through a fast transform, in place.
#pragma once

#include "dct_select/level.h"
#include "lowrank_core/simd/fft.h"

namespace lowrank::LRC_LEVEL {
namespace {

using dct_select::Basis;
using dct_select::Transform;

template <class V>
LRC_INLINE V number(const Element<V>* z, int64_t vector) {
  return load_bits<V>(z + vector * kLanesOf<V>);
}
template <class V>
LRC_INLINE void set_number(Element<V>* z, int64_t vector, const V& x) {
  store_bits(z + vector * kLanesOf<V>, x);
}

template <class V>
LRC_INLINE void hadamard_pass4(Element<V>* z, int64_t sub) {
  for (int64_t j = 0; j < sub; ++j) {
    const V x0 = number<V>(z, j), x1 = number<V>(z, j + sub), x2 = number<V>(z, j + 2 * sub),
            x3 = number<V>(z, j + 3 * sub);
    const V a = x0 + x1, b = x0 - x1, c = x2 + x3, d = x2 - x3;
    set_number(z, j, a + c);
    set_number(z, j + sub, b + d);
    set_number(z, j + 2 * sub, a - c);
    set_number(z, j + 3 * sub, b - d);
  }
}

// Natural order in and out: the matrix is a product of passes that commute.
template <class V>
void hadamard(Element<V>* z, int64_t n) {
  if (n < 4) {
    if (n < 2) return;
    const V a = number<V>(z, 0), b = number<V>(z, 1);
    set_number(z, 0, a + b);
    set_number(z, 1, a - b);
    return;
  }
  hadamard_pass4<V>(z, n / 4);
  for (int64_t part = 0; part < 4; ++part) hadamard<V>(z + part * (n / 4) * kLanesOf<V>, n / 4);
}

// ---- the last step of "dct2", and the first one of "dct3" ---------------------------------------------------------
// Loops copy the transform that they read, so that their stores cannot change it for all that the compiler knows.
// Coordinates k and n - k stand where the two parts of Fourier coefficient k do; 0 and n / 2 share coefficient 0.

template <class V>
using Numbers = dct_select::Couple<V>;
template <class V>
using Quad = dct_select::Quad<V>;

// The couples that a transform of n has, besides coefficient 0: 1 .. count of them share input two by two if n is even.
template <class V>
LRC_INLINE int64_t quads(const Transform<Element<V>>& t) {
  return t.n % 2 == 0 ? t.n / 4 : t.n / 2;
}

template <class V>
LRC_INLINE Numbers<V> point(const Transform<Element<V>>& t, const Element<V>* z, int64_t k) {
  const Element<V>* const at = z + t.points[k] * kPoint<V>;
  return {load_bits<V>(at), load_bits<V>(at + kLanesOf<V>)};
}
template <class V>
LRC_INLINE void set_point(const Transform<Element<V>>& t, Element<V>* z, int64_t k, const V& re, const V& im) {
  store_point(z + t.points[k] * kPoint<V>, Complex<V>{re, im});
}

template <class V>
LRC_INLINE V first_amplitude(const Transform<Element<V>>& t) {
  return broadcast_to<V>(Element<V>(dct_select::first_amplitude(t.n)));
}

// Coordinates 0 and n / 2; without meaning the latter if n is odd.
template <class V>
LRC_INLINE Numbers<V> turned_first(const Transform<Element<V>>& t, const Element<V>* z) {
  const Numbers<V> x = point<V>(t, z, 0);
  const V amplitude = first_amplitude<V>(t);
  if (t.n % 2 != 0) return {x.first * amplitude, V{}};
  return {(x.first + x.second) * amplitude, (x.first - x.second) * amplitude};
}

// Coordinates (k, n - k) and (h - k, h + k), 1 <= k <= quads; the second couple without meaning if n is odd.
template <class V>
LRC_INLINE Quad<V> turned(const Transform<Element<V>>& t, const Element<V>* z, int64_t k) {
  const Element<V>* const w = t.turns + 4 * k;
  const V c = broadcast_to<V>(w[0]), s = broadcast_to<V>(w[1]);
  const Numbers<V> x = point<V>(t, z, k);
  if (t.n % 2 != 0) return {dct_select::turned(Numbers<V>{x.first + x.first, x.second + x.second}, c, s), Numbers<V>{}};
  const int64_t m = t.n / 2 - k;
  const Quad<V> v = dct_select::unpacked(Quad<V>{x, point<V>(t, z, m)}, broadcast_to<V>(w[2]), broadcast_to<V>(w[3]));
  const Element<V>* const other = t.turns + 4 * m;
  return {dct_select::turned(v.k, c, s), dct_select::turned(v.m, broadcast_to<V>(other[0]), broadcast_to<V>(other[1]))};
}

template <class V>
void turn_all(const Transform<Element<V>>& transform, Element<V>* z) {
  const Transform<Element<V>> t = transform;
  const Numbers<V> first = turned_first<V>(t, z);
  set_point(t, z, 0, first.first, first.second);
  for (int64_t k = 1; k <= quads<V>(t); ++k) {
    const Quad<V> y = turned<V>(t, z, k);
    if (t.n % 2 == 0) set_point(t, z, t.n / 2 - k, y.m.first, y.m.second);
    set_point(t, z, k, y.k.first, y.k.second);
  }
}

// One coordinate.
template <class V>
LRC_INLINE V turned_one(const Transform<Element<V>>& t, const Element<V>* z, int64_t k) {
  const int64_t half = t.n / 2, low = smaller(k, t.n - k);
  if (k == 0) return turned_first<V>(t, z).first;
  if (t.n % 2 != 0) return k == low ? turned<V>(t, z, low).k.first : turned<V>(t, z, low).k.second;
  if (k == half) return turned_first<V>(t, z).second;
  const Quad<V> y = turned<V>(t, z, smaller(low, half - low));
  const Numbers<V>& x = 2 * low <= half ? y.k : y.m;
  return k == low ? x.first : x.second;
}

// The transposed maps, with the parts in each other's place: what follows is a forward transform, and its result is
// that of the inverse one with the parts still exchanged.
template <class V>
void turn_back(const Transform<Element<V>>& transform, Element<V>* z) {
  const Transform<Element<V>> t = transform;
  const bool odd = t.n % 2 != 0;
  const V amplitude = first_amplitude<V>(t);
  const Numbers<V> first = point<V>(t, z, 0);
  const V y0 = first.first * amplitude, yh = first.second * amplitude;
  odd ? set_point(t, z, 0, V{}, y0) : set_point(t, z, 0, y0 - yh, y0 + yh);
  for (int64_t k = 1; k <= quads<V>(t); ++k) {
    const Element<V>* const w = t.turns + 4 * k;
    const Numbers<V> v = dct_select::turned(point<V>(t, z, k), broadcast_to<V>(w[0]), broadcast_to<V>(w[1]));
    const int64_t m = odd ? t.n - k : t.n / 2 - k;
    if (odd) {
      set_point(t, z, m, V{}, V{});
      set_point(t, z, k, v.second + v.second, v.first + v.first);
    } else if (k == m) {
      set_point(t, z, k, -(v.second + v.second), v.first + v.first);
    } else {
      const Element<V>* const other = t.turns + 4 * m;
      const Numbers<V> f = dct_select::turned(point<V>(t, z, m), broadcast_to<V>(other[0]), broadcast_to<V>(other[1]));
      const Quad<V> x = dct_select::packed(Quad<V>{v, f}, broadcast_to<V>(w[2]), broadcast_to<V>(w[3]));
      set_point(t, z, k, x.k.second, x.k.first);
      set_point(t, z, m, x.m.second, x.m.first);
    }
  }
}

// All but the last step of "dct2", which is left to whoever reads the coordinates: often few of them, or once.
template <class V>
void transform_tile(const Transform<Element<V>>& t, Element<V>* z) {
  switch (t.basis) {
    case Basis::kIdentity:
      return;
    case Basis::kHadamard:
      return hadamard<V>(z, t.n);
    case Basis::kDct2:
      return transform_to_places<V>(*t.plan, z);
    case Basis::kDct3:
      turn_back<V>(t, z);
      return transform_from_places<V>(*t.plan, z);
  }
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
