// fft: the passes of a complex Fourier transform, one transform in each lane, for files in cpp/src/levels.
//
// A tile is [length][2][lanes]: the real and the imaginary parts of one point of as many transforms as a vector has
// lanes. The passes with decimation in frequency leave digit-reversed order, those with decimation in time start from
// it, so nothing is ever reordered. Blocks that fit L1 are finished before the next one is touched.
#pragma once

#include "lowrank_core/fft.h"
#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

constexpr int64_t kBlockBytes = 32 << 10;  // of a tile, that its remaining passes run over one after another

template <class T>
struct Complex {
  Vec<T> re, im;
};

template <class T>
constexpr int64_t kPoint = 2 * kLanes<T>;  // numbers from one point of a tile to the next

template <class T>
LRC_HD Complex<T> load_point(const T* from) {
  return {load_bits<Vec<T>>(from), load_bits<Vec<T>>(from + kLanes<T>)};
}
template <class T>
LRC_HD void store_point(T* to, const Complex<T>& x) {
  store_bits(to, x.re);
  store_bits(to + kLanes<T>, x.im);
}

template <class T>
LRC_HD Complex<T> operator+(const Complex<T>& x, const Complex<T>& y) {
  return {x.re + y.re, x.im + y.im};
}
template <class T>
LRC_HD Complex<T> operator-(const Complex<T>& x, const Complex<T>& y) {
  return {x.re - y.re, x.im - y.im};
}

// x times the number whose real and imaginary parts are w[0] and w[1].
template <class T>
LRC_HD Complex<T> times(const Complex<T>& x, const T* w) {
  const Vec<T> re = broadcast(w[0]), im = broadcast(w[1]);
  return {multiply_add(x.re, re, -(x.im * im)), multiply_add(x.re, im, x.im * re)};
}

// ---- transforms of one radix -------------------------------------------------------------------------------------

template <class T>
LRC_HD void butterfly2(Complex<T>* x) {
  const Complex<T> a = x[0], b = x[1];
  x[0] = a + b;
  x[1] = a - b;
}

template <class T>
LRC_HD void butterfly4(Complex<T>* x) {
  const Complex<T> a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = x[1] - x[3];
  x[0] = a + c;
  x[1] = {b.re + d.im, b.im - d.re};
  x[2] = a - c;
  x[3] = {b.re - d.im, b.im + d.re};
}

// An odd radix: the points q and radix - q share their cosines and sines. sums and differences: memory of the caller.
template <class T>
LRC_HD void butterfly_odd(Complex<T>* x, int64_t radix, const T* roots, Complex<T>* sums, Complex<T>* differences) {
  const int64_t half = radix / 2;
  const Complex<T> first = x[0];
  Complex<T> total = first;
  for (int64_t q = 1; q <= half; ++q) {
    sums[q - 1] = x[q] + x[radix - q];
    differences[q - 1] = x[q] - x[radix - q];
    total = total + sums[q - 1];
  }
  x[0] = total;
  for (int64_t p = 1; p <= half; ++p) {
    Complex<T> even = first, odd = {};
    int64_t turn = 0;
    for (int64_t q = 0; q < half; ++q) {
      turn += p;
      if (turn >= radix) turn -= radix;
      const Vec<T> c = broadcast(roots[2 * turn]), s = broadcast(roots[2 * turn + 1]);
      even = {multiply_add(sums[q].re, c, even.re), multiply_add(sums[q].im, c, even.im)};
      odd = {multiply_add(differences[q].im, -s, odd.re), multiply_add(differences[q].re, s, odd.im)};
    }
    x[p] = even + odd;
    x[radix - p] = even - odd;
  }
}

// ---- passes ------------------------------------------------------------------------------------------------------

template <class T, int64_t kRadix>
LRC_HD void butterfly(Complex<T>* x, const fft::Stage<T>& stage) {
  constexpr int64_t most = kRadix > 0 ? kRadix : fft::kLargestRadix;
  if constexpr (kRadix == 2) {
    butterfly2(x);
  } else if constexpr (kRadix == 4) {
    butterfly4(x);
  } else {
    Complex<T> sums[most / 2], differences[most / 2];
    butterfly_odd(x, kRadix > 0 ? kRadix : stage.radix, stage.roots, sums, differences);
  }
}

// One pass over `blocks` blocks, the twiddles after the butterflies (frequency) or before them (time). kRadix 0: any.
template <class T, int64_t kRadix, bool kTime>
void radix_pass(const fft::Stage<T>& stage, T* z, int64_t blocks) {
  constexpr int64_t most = kRadix > 0 ? kRadix : fft::kLargestRadix;
  const int64_t radix = kRadix > 0 ? kRadix : stage.radix, sub = stage.sub, step = sub * kPoint<T>;
  for (int64_t b = 0; b < blocks; ++b) {
    const T* w = stage.twiddles;
    for (int64_t j = 0; j < sub; ++j, w += 2 * (radix - 1)) {
      T* const at = z + b * radix * step + j * kPoint<T>;
      Complex<T> x[most];
      x[0] = load_point(at);
      for (int64_t q = 1; q < radix; ++q) x[q] = load_point(at + q * step);
      if (kTime && sub > 1) {
        for (int64_t q = 1; q < radix; ++q) x[q] = times(x[q], w + 2 * (q - 1));
      }
      butterfly<T, kRadix>(x, stage);
      if (!kTime && sub > 1) {
        for (int64_t q = 1; q < radix; ++q) x[q] = times(x[q], w + 2 * (q - 1));
      }
      for (int64_t q = 0; q < radix; ++q) store_point(at + q * step, x[q]);
    }
  }
}

template <class T, bool kTime>
void pass(const fft::Stage<T>& stage, T* z, int64_t blocks) {
  switch (stage.radix) {
    case 2:
      return radix_pass<T, 2, kTime>(stage, z, blocks);
    case 3:
      return radix_pass<T, 3, kTime>(stage, z, blocks);
    case 4:
      return radix_pass<T, 4, kTime>(stage, z, blocks);
    case 5:
      return radix_pass<T, 5, kTime>(stage, z, blocks);
    case 7:
      return radix_pass<T, 7, kTime>(stage, z, blocks);
    default:
      return radix_pass<T, 0, kTime>(stage, z, blocks);
  }
}

// The passes from number s on, over `blocks` blocks next to each other.
template <class T, bool kTime>
void passes(const fft::Plan<T>& plan, int s, T* z, int64_t blocks) {
  if (s == plan.stages) return;
  const fft::Stage<T>& stage = plan.stage[s];
  const int64_t block = stage.radix * stage.sub * kPoint<T>;
  if (blocks > 1 && blocks * block * int64_t(sizeof(T)) > kBlockBytes) {
    for (int64_t b = 0; b < blocks; ++b) passes<T, kTime>(plan, s, z + b * block, 1);
    return;
  }
  if (!kTime) pass<T, kTime>(stage, z, blocks);
  passes<T, kTime>(plan, s + 1, z, blocks * stage.radix);
  if (kTime) pass<T, kTime>(stage, z, blocks);
}

// ---- the transform -----------------------------------------------------------------------------------------------

// Bluestein's convolution: natural order in and out.
template <class T>
void chirp_transform(const fft::Plan<T>& plan, T* z) {
  for (int64_t j = 0; j < plan.n; ++j) {
    T* const at = z + j * kPoint<T>;
    store_point(at, times(load_point(at), plan.chirp + 2 * j));
  }
  memset(z + plan.n * kPoint<T>, 0, size_t((plan.length - plan.n) * kPoint<T>) * sizeof(T));
  passes<T, false>(plan, 0, z, 1);
  for (int64_t k = 0; k < plan.length; ++k) {  // real and imaginary parts change places, so that the way back is one
    T* const at = z + k * kPoint<T>;           // forward transform more
    const Complex<T> product = times(load_point(at), plan.kernel + 2 * k);
    store_point(at, Complex<T>{product.im, product.re});
  }
  passes<T, true>(plan, 0, z, 1);
  for (int64_t k = 0; k < plan.n; ++k) {
    T* const at = z + k * kPoint<T>;
    const Complex<T> back = load_point(at);
    store_point(at, times(Complex<T>{back.im, back.re}, plan.chirp + 2 * k));
  }
}

// Point j at j -> frequency k at plan.place[k].
template <class T>
void transform_to_places(const fft::Plan<T>& plan, T* z) {
  plan.chirped ? chirp_transform(plan, z) : passes<T, false>(plan, 0, z, 1);
}

// Point j at plan.place[j] -> frequency k at k.
template <class T>
void transform_from_places(const fft::Plan<T>& plan, T* z) {
  plan.chirped ? chirp_transform(plan, z) : passes<T, true>(plan, 0, z, 1);
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
