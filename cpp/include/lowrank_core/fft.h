// fft: plans of the complex discrete Fourier transform, any length, for many transforms side by side.
//
//   Z_k = sum over j of z_j exp(-2 pi i jk / n)
//
// Each lane of a vector holds a transform of its own (simd/fft.h), so a plan is scalars: factors, twiddles, places. The
// passes work in place and leave frequency k at place[k] (digits reversed); the passes in the other order take it from
// there. Lengths with a prime factor above kLargestRadix go through a convolution of smooth length.
// Twiddles are evaluated in float64 from integer angles and rounded once.
// Source: Cooley, Tukey, "An algorithm for the machine calculation of complex Fourier series", Math. Comp. 19 (1965);
// Bluestein, "A linear filtering approach to the computation of discrete Fourier transform", IEEE Trans. Audio
// Electroacoust. 18 (1970).
#pragma once

#include <cstdint>

#include "lowrank_core/buffer.h"

namespace lowrank::fft {

constexpr int64_t kLargestRadix = 61;  // beyond it the convolution takes fewer operations
constexpr int kMostStages = 40;

// One pass: transforms of `radix` points that are `sub` apart, in each block of radix * sub points.
template <class T>
struct Stage {
  int64_t radix, sub;
  const T* twiddles;  // [sub][radix - 1] of cos, sin: exp(-2 pi i jp / (radix sub)) for p = 1 .. radix - 1
  const T* roots;     // [radix] of cos, sin: exp(-2 pi i t / radix)
};

template <class T>
struct Plan {
  int64_t n = 0;
  int64_t length = 0;  // points of the passes: n, or of the convolution
  bool chirped = false;
  int stages = 0;
  Stage<T> stage[kMostStages];
  const int32_t* place = nullptr;  // [n]: where frequency k stands
  const T* chirp = nullptr;        // [n] of cos, sin: exp(-pi i j² / n)
  const T* kernel = nullptr;       // [length] of re, im: the spectrum to multiply with, as the passes leave it

  Buffer<T> numbers{0};
  Buffer<int32_t> places{0};
};

// A plan for n >= 1 points, n below 2^29. T is float or double.
template <class T>
Plan<T> make_plan(int64_t n);

// Largest prime factor of n; 1 for n = 1.
int64_t largest_prime(int64_t n);

// The smallest number >= n with no prime factor above 5.
int64_t smooth_length(int64_t n);

}  // namespace lowrank::fft
