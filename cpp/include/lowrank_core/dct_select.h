// dct_select: the atoms of an orthogonal basis that keep most of a matrix, by fast transforms.
//
//   S = G Q (right) or Qᵀ G (left);  e_j = sum of |S_ij|^p over the other direction;  I = the r largest, ascending
//
// Q's columns are the atoms: rows of the DCT-II matrix ("dct2"), its columns ("dct3"), unit vectors ("identity"), rows
// of the Sylvester-Hadamard matrix over sqrt n ("hadamard"), or an array. The spectrum is never written: a first pass
// transforms a few rows at a time and keeps sums of squares, a second one transforms them again and keeps the chosen
// coefficients. A fast transform costs less than to write and read what it gives.
// Two real rows travel as the real and the imaginary part of one complex transform of the same length.
// Source: Makhoul, "A fast cosine transform in one and two dimensions", IEEE Trans. Acoust. Speech Signal Process. 28
// (1980), for the even-odd order; Modoranu et al., arXiv 2505.17967, algorithm 1, for the selection, with energies
// (p = 2) as the default, for which the choice is optimal, and ties to the lower index.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "lowrank_core/angle.h"
#include "lowrank_core/fft.h"
#include "lowrank_core/view.h"

namespace lowrank::dct {

enum class Basis : uint8_t { kIdentity, kDct2, kDct3, kHadamard };
enum class Method : uint8_t { kAuto, kFft, kGemm };  // of the two cosine bases

// What takes coordinates in a basis back: the same kernel with the other matrix.
constexpr Basis inverse(Basis basis) {
  if (basis == Basis::kDct2) return Basis::kDct3;
  return basis == Basis::kDct3 ? Basis::kDct2 : basis;
}

// ---- mathematics -------------------------------------------------------------------------------------------------

// Where sample i of n stands in Makhoul's order: even ones ascending, then odd ones descending.
LRC_HD int64_t makhoul_place(int64_t n, int64_t i) { return i % 2 == 0 ? i / 2 : n - (i + 1) / 2; }

// The turn of frequency k after the Fourier transform in Makhoul's order: exp(-i pi k / 2n), times the amplitude of a
// pair, half of sqrt(2/n), because the two rows of a pair are told apart by sums of two terms.
LRC_HD CirclePoint makhoul_turn(int64_t n, int64_t k) {
  const CirclePoint point = circle_point(k, 4 * n);
  const double amplitude = 0.5 * ::sqrt(2.0 / double(n));
  return {amplitude * point.cos, amplitude * point.sin};
}

// Frequencies k and n - k of two real rows from Z_k = zk and Z_(n-k) = zm of row A + i row B, and the transposed map.
// V: a number or a vector.
template <class V>
struct Pair {
  V a_k, a_m, b_k, b_m;
};
template <class V>
LRC_HD Pair<V> turn_pair(V zk_re, V zk_im, V zm_re, V zm_im, V c, V s) {
  const V p = zk_re + zm_re, q = zk_im - zm_im, u = zk_re - zm_re, w = zk_im + zm_im;
  return {p * c + q * s, p * s - q * c, w * c - u * s, w * s + u * c};
}
template <class V>
struct Spectrum {
  V zk_re, zk_im, zm_re, zm_im;
};
template <class V>
LRC_HD Spectrum<V> turn_pair_back(const Pair<V>& y, V c, V s) {
  const V p = y.a_k * c + y.a_m * s, q = y.a_k * s - y.a_m * c;
  const V w = y.b_k * c + y.b_m * s, u = y.b_m * c - y.b_k * s;
  return {p + u, q + w, p - u, w - q};
}

// Entry (k, i) of the Sylvester-Hadamard matrix: -1 to the number of bits that k and i share.
LRC_HD int hadamard_sign(uint64_t k, uint64_t i) {
  uint64_t shared = k & i;
  int odd = 0;
  for (; shared != 0; shared &= shared - 1) odd ^= 1;
  return odd ? -1 : 1;
}

// Whether an atom of this score and index is chosen before another: ties go to the lower index, and a NaN is below
// every number.
LRC_HD bool ranks_before(double score, int64_t index, double other_score, int64_t other_index) {
  if (score > other_score) return true;
  if (score < other_score) return false;
  const bool nan = score != score, other_nan = other_score != other_score;
  return nan == other_nan ? index < other_index : other_nan;
}

// ---- entry points ------------------------------------------------------------------------------------------------
// Any float dtype and strides; float64 is computed in float64, the rest in float32. Tier D1.

// out <- coordinates of x along its last dimension, both [..., n]; 0 <= n < 2^29, a power of two for kHadamard.
void transform_cpu(const View& out, const View& x, Basis basis, Method method);

struct Selection {
  Basis basis = Basis::kDct2;
  std::optional<Matrix> atoms;  // [n, n], in place of `basis`; the caller vouches for its orthonormal columns
  int norm_ord = 2;             // 1 or 2
};

// g [m, n] -> indices [r] int64, coeffs [m, r]; returns the share of the squares captured, in [0, 1], 1 for a zero
// matrix. The atoms are those of the rows (side right); a left side is the transposed matrices. Throws NotFinite.
double select_cpu(int64_t* indices, const Matrix& coeffs, const Matrix& g, const Selection& selection);

// The same of S = coordinates of g + residual, with error feedback in coordinates: residual [m, n] <- S, with the
// chosen columns multiplied by `keep`. Nothing is written where S is not finite.
double feedback_cpu(int64_t* indices, const Matrix& coeffs, const Matrix& residual, const Matrix& g, double keep,
                    const Selection& selection);

// out [m, n] <- coeffs [m, r] times the transposed atoms of `indices`, ascending; a shorter or wrong list throws Error.
void project_back_cpu(const Matrix& out, const Matrix& coeffs, const int64_t* indices, const Selection& selection);

// out [m, r_new] <- columns of x [m, r_old] whose atom is in both lists, 0 for the others; any dtype of 2, 4 or 8
// bytes.
void rotate_cpu(const Matrix& out, const Matrix& x, const int64_t* old_indices, const int64_t* new_indices);

}  // namespace lowrank::dct
