// fft: the passes of a complex Fourier transform, one transform in each lane, for files in cpp/src/*/levels.
//
// A tile is [length][2][lanes]: the real and the imaginary parts of one point of as many transforms as the vector V has
// lanes. The passes with decimation in frequency leave digit-reversed order, those with decimation in time start from
// it, so nothing is ever reordered. Blocks that fit L1 are finished before the next one is touched.
#pragma once

#include <type_traits>

#include "lowrank_core/fft.h"
#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

constexpr int64_t kBlockBytes = 32 << 10;  // of a tile, that its remaining passes run over one after another

// The passes are written for a vector of any width; narrow ones are for rows that are long and few.
template <class V>
using Element = std::remove_cvref_t<decltype(V{}[0])>;
template <class V>
constexpr int kLanesOf = sizeof(V) / sizeof(Element<V>);
template <class T>
using Single = Vector<T, 1>;

template <class V>
LRC_INLINE V broadcast_to(Element<V> x) {
  return x - V{};
}

// As of whole vectors, to the bit.
LRC_INLINE Single<float> multiply_add(Single<float> a, Single<float> b, Single<float> c) {
#if defined(__FMA__)
  return Single<float>{__builtin_fmaf(a[0], b[0], c[0])};
#else
  return a * b + c;
#endif
}
LRC_INLINE Single<double> multiply_add(Single<double> a, Single<double> b, Single<double> c) {
#if defined(__FMA__)
  return Single<double>{__builtin_fma(a[0], b[0], c[0])};
#else
  return a * b + c;
#endif
}

template <class V>
struct Complex {
  V re, im;
};

template <class V>
constexpr int64_t kPoint = 2 * kLanesOf<V>;  // numbers from one point of a tile to the next

template <class V>
LRC_INLINE Complex<V> load_point(const Element<V>* from) {
  return {load_bits<V>(from), load_bits<V>(from + kLanesOf<V>)};
}
template <class V>
LRC_INLINE void store_point(Element<V>* to, const Complex<V>& x) {
  store_bits(to, x.re);
  store_bits(to + kLanesOf<V>, x.im);
}

template <class V>
LRC_INLINE Complex<V> operator+(const Complex<V>& x, const Complex<V>& y) {
  return {x.re + y.re, x.im + y.im};
}
template <class V>
LRC_INLINE Complex<V> operator-(const Complex<V>& x, const Complex<V>& y) {
  return {x.re - y.re, x.im - y.im};
}

// x times the number whose real and imaginary parts are w[0] and w[1].
template <class V>
LRC_INLINE Complex<V> times(const Complex<V>& x, const Element<V>* w) {
  const V re = broadcast_to<V>(w[0]), im = broadcast_to<V>(w[1]);
  return {multiply_add(x.re, re, -(x.im * im)), multiply_add(x.re, im, x.im * re)};
}

// ---- transforms of one radix -------------------------------------------------------------------------------------

template <class V>
LRC_INLINE void butterfly2(Complex<V>* x) {
  const Complex<V> a = x[0], b = x[1];
  x[0] = a + b;
  x[1] = a - b;
}

template <class V>
LRC_INLINE void butterfly4(Complex<V>* x) {
  const Complex<V> a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = x[1] - x[3];
  x[0] = a + c;
  x[1] = {b.re + d.im, b.im - d.re};
  x[2] = a - c;
  x[3] = {b.re - d.im, b.im + d.re};
}

// An odd radix: the points q and radix - q share their cosines and sines. sums and differences: memory of the caller.
template <class V>
LRC_INLINE void butterfly_odd(Complex<V>* x, int64_t radix, const Element<V>* roots, Complex<V>* sums,
                              Complex<V>* differences) {
  const int64_t half = radix / 2;
  const Complex<V> first = x[0];
  Complex<V> total = first;
  for (int64_t q = 1; q <= half; ++q) {
    sums[q - 1] = x[q] + x[radix - q];
    differences[q - 1] = x[q] - x[radix - q];
    total = total + sums[q - 1];
  }
  x[0] = total;
  for (int64_t p = 1; p <= half; ++p) {
    Complex<V> even = first, odd = {};
    int64_t turn = 0;
    for (int64_t q = 0; q < half; ++q) {
      turn += p;
      if (turn >= radix) turn -= radix;
      const V c = broadcast_to<V>(roots[2 * turn]), s = broadcast_to<V>(roots[2 * turn + 1]);
      even = {multiply_add(sums[q].re, c, even.re), multiply_add(sums[q].im, c, even.im)};
      odd = {multiply_add(differences[q].im, -s, odd.re), multiply_add(differences[q].re, s, odd.im)};
    }
    x[p] = even + odd;
    x[radix - p] = even - odd;
  }
}

// ---- passes ------------------------------------------------------------------------------------------------------

template <class V, int64_t kRadix>
LRC_INLINE void butterfly(Complex<V>* x, const fft::Stage<Element<V>>& stage) {
  constexpr int64_t most = kRadix > 0 ? kRadix : fft::kLargestRadix;
  if constexpr (kRadix == 2) {
    butterfly2(x);
  } else if constexpr (kRadix == 4) {
    butterfly4(x);
  } else {
    Complex<V> sums[most / 2], differences[most / 2];
    butterfly_odd(x, kRadix > 0 ? kRadix : stage.radix, stage.roots, sums, differences);
  }
}

// One pass over `blocks` blocks, the twiddles after the butterflies (frequency) or before them (time). kRadix 0: any.
template <class V, int64_t kRadix, bool kTime>
void radix_pass(const fft::Stage<Element<V>>& stage, Element<V>* z, int64_t blocks) {
  constexpr int64_t most = kRadix > 0 ? kRadix : fft::kLargestRadix;
  const int64_t radix = kRadix > 0 ? kRadix : stage.radix, sub = stage.sub, step = sub * kPoint<V>;
  for (int64_t b = 0; b < blocks; ++b) {
    const Element<V>* w = stage.twiddles;
    for (int64_t j = 0; j < sub; ++j, w += 2 * (radix - 1)) {
      Element<V>* const at = z + b * radix * step + j * kPoint<V>;
      Complex<V> x[most];
      x[0] = load_point<V>(at);
      for (int64_t q = 1; q < radix; ++q) x[q] = load_point<V>(at + q * step);
      if (kTime && sub > 1) {
        for (int64_t q = 1; q < radix; ++q) x[q] = times(x[q], w + 2 * (q - 1));
      }
      butterfly<V, kRadix>(x, stage);
      if (!kTime && sub > 1) {
        for (int64_t q = 1; q < radix; ++q) x[q] = times(x[q], w + 2 * (q - 1));
      }
      for (int64_t q = 0; q < radix; ++q) store_point(at + q * step, x[q]);
    }
  }
}

template <class V, bool kTime>
void pass(const fft::Stage<Element<V>>& stage, Element<V>* z, int64_t blocks) {
  switch (stage.radix) {
    case 2:
      return radix_pass<V, 2, kTime>(stage, z, blocks);
    case 3:
      return radix_pass<V, 3, kTime>(stage, z, blocks);
    case 4:
      return radix_pass<V, 4, kTime>(stage, z, blocks);
    case 5:
      return radix_pass<V, 5, kTime>(stage, z, blocks);
    case 7:
      return radix_pass<V, 7, kTime>(stage, z, blocks);
    default:
      return radix_pass<V, 0, kTime>(stage, z, blocks);
  }
}

// The passes from number s on, over `blocks` blocks next to each other.
template <class V, bool kTime>
void passes(const fft::Plan<Element<V>>& plan, int s, Element<V>* z, int64_t blocks) {
  if (s == plan.stages) return;
  const fft::Stage<Element<V>>& stage = plan.stage[s];
  const int64_t block = stage.radix * stage.sub * kPoint<V>;
  if (blocks > 1 && blocks * block * int64_t(sizeof(Element<V>)) > kBlockBytes) {
    for (int64_t b = 0; b < blocks; ++b) passes<V, kTime>(plan, s, z + b * block, 1);
    return;
  }
  if (!kTime) pass<V, kTime>(stage, z, blocks);
  passes<V, kTime>(plan, s + 1, z, blocks * stage.radix);
  if (kTime) pass<V, kTime>(stage, z, blocks);
}

// ---- the transform -----------------------------------------------------------------------------------------------

// Bluestein's convolution: natural order in and out.
template <class V>
void chirp_transform(const fft::Plan<Element<V>>& plan, Element<V>* z) {
  for (int64_t j = 0; j < plan.n; ++j) {
    Element<V>* const at = z + j * kPoint<V>;
    store_point(at, times(load_point<V>(at), plan.chirp + 2 * j));
  }
  memset(z + plan.n * kPoint<V>, 0, size_t((plan.length - plan.n) * kPoint<V>) * sizeof(Element<V>));
  passes<V, false>(plan, 0, z, 1);
  for (int64_t k = 0; k < plan.length; ++k) {  // real and imaginary parts change places, so that the way back is one
    Element<V>* const at = z + k * kPoint<V>;  // forward transform more
    const Complex<V> product = times(load_point<V>(at), plan.kernel + 2 * k);
    store_point(at, Complex<V>{product.im, product.re});
  }
  passes<V, true>(plan, 0, z, 1);
  for (int64_t k = 0; k < plan.n; ++k) {
    Element<V>* const at = z + k * kPoint<V>;
    const Complex<V> back = load_point<V>(at);
    store_point(at, times(Complex<V>{back.im, back.re}, plan.chirp + 2 * k));
  }
}

// Point j at j -> frequency k at plan.place[k].
template <class V>
void transform_to_places(const fft::Plan<Element<V>>& plan, Element<V>* z) {
  plan.chirped ? chirp_transform<V>(plan, z) : passes<V, false>(plan, 0, z, 1);
}

// Point j at plan.place[j] -> frequency k at k.
template <class V>
void transform_from_places(const fft::Plan<Element<V>>& plan, Element<V>* z) {
  plan.chirped ? chirp_transform<V>(plan, z) : passes<V, true>(plan, 0, z, 1);
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
