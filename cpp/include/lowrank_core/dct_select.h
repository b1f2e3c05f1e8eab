// dct_select: the atoms of an orthogonal basis that keep most of a matrix, by fast transforms.
//
//   S = G Q (right) or Qᵀ G (left);  e_j = sum of |S_ij|^p over the other direction;  I = the r largest, ascending
//
// Q's columns are the atoms: rows of the DCT-II matrix ("dct2"), its columns ("dct3"), unit vectors ("identity"), rows
// of the Sylvester-Hadamard matrix over sqrt n ("hadamard"), or an array. The spectrum is never written: a first pass
// transforms a few rows at a time and keeps sums of squares, a second one transforms them again and keeps the chosen
// coefficients. A fast transform costs less than to write and read what it gives.
// A row of even length is one complex transform of half of it, so no row sees another: rows of zeros stay zeros, and
// small rows beside large ones keep their digits.
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

namespace lowrank::dct_select {

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

// Coordinate 0 of "dct2" times its root; what Hadamard's passes, which only add, leave out.
LRC_HD double first_amplitude(int64_t n) { return ::sqrt(1.0 / double(n)); }
LRC_HD double hadamard_amplitude(int64_t n) { return 1.0 / ::sqrt(double(n)); }

// What becomes of the Fourier coefficients of a row v in Makhoul's order: y_k = s Re(V_k exp(-i pi k / 2n)) and
// y_(n-k) = -s Im of the same, s² = 2/n. For an even n the complex row v_2j + i v_(2j+1) of h = n/2 points has the
// coefficients Z, and with E = (Z_k + conj Z_(h-k)) / 2, O = (Z_k - conj Z_(h-k)) / 2i, w = exp(-2 pi i k / n),
// V_k = E + w O and V_(h-k) = conj(E - w O).
struct Turn {
  double cos, sin;            // of pi k / 2n, times s / 2: the sums below are twice E and O
  double root_cos, root_sin;  // of 2 pi k / n
};
LRC_HD Turn turn_of(int64_t n, int64_t k) {
  const CirclePoint half = circle_point(k, 4 * n), root = circle_point(k, n);
  const double amplitude = 0.5 * ::sqrt(2.0 / double(n));
  return {amplitude * half.cos, amplitude * half.sin, root.cos, root.sin};
}

// V: a number or a vector.
template <class V>
struct Couple {
  V first, second;
};
template <class V>
struct Quad {
  Couple<V> k, m;  // two coefficients that share their input: of k and of h - k
};

// (y_k, y_(n-k)) from V_k, and the transposed map.
template <class V>
LRC_HD Couple<V> turned(const Couple<V>& v, V c, V s) {
  return {v.first * c + v.second * s, v.first * s - v.second * c};
}

// (V_k, V_(h-k)) times 2 from (Z_k, Z_(h-k)), and the transposed map.
template <class V>
LRC_HD Quad<V> unpacked(const Quad<V>& z, V root_cos, V root_sin) {
  const V e_re = z.k.first + z.m.first, e_im = z.k.second - z.m.second;
  const V o_re = z.k.second + z.m.second, o_im = z.m.first - z.k.first;
  const V r_re = o_re * root_cos + o_im * root_sin, r_im = o_im * root_cos - o_re * root_sin;
  return {{e_re + r_re, e_im + r_im}, {e_re - r_re, r_im - e_im}};
}
template <class V>
LRC_HD Quad<V> packed(const Quad<V>& v, V root_cos, V root_sin) {
  const V e_re = v.k.first + v.m.first, e_im = v.k.second - v.m.second;
  const V r_re = v.k.first - v.m.first, r_im = v.k.second + v.m.second;
  const V o_re = r_re * root_cos - r_im * root_sin, o_im = r_re * root_sin + r_im * root_cos;
  return {{e_re - o_im, e_im + o_re}, {e_re + o_im, o_re - e_im}};
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
  std::optional<Matrix> atoms =
      std::nullopt;  // [n, n], in place of `basis`; the caller vouches for its orthonormal columns
  int norm_ord = 2;  // 1 or 2
};

// g [m, n] -> indices [r] int64, coeffs [m, r]; returns the share of the squares captured, in [0, 1], 1 for a zero
// matrix. The atoms are those of the rows (side right); a left side is the transposed matrices. Throws NotFinite.
double select_cpu(int64_t* indices, const Matrix& coeffs, const Matrix& g, const Selection& selection);

// The same of S = coordinates of g + residual, with error feedback in coordinates: residual [m, n] <- S, with the
// chosen columns multiplied by `keep`. NaN and infinity are refused before anything is written; where the caller knows
// that g is `finite` and no float64, which saves a reading of both, they are refused once residual is S.
double feedback_cpu(int64_t* indices, const Matrix& coeffs, const Matrix& residual, const Matrix& g, double keep,
                    const Selection& selection, bool finite = false);

// out [m, n] <- coeffs [m, r] times the transposed atoms of `indices`, ascending; a shorter or wrong list throws Error.
void project_back_cpu(const Matrix& out, const Matrix& coeffs, const int64_t* indices, const Selection& selection);

// out [m, r_new] <- columns of x [m, r_old] whose atom is in both lists, 0 for the others; any dtype of 2, 4 or 8
// bytes.
void rotate_cpu(const Matrix& out, const Matrix& x, const int64_t* old_indices, const int64_t* new_indices);

}  // namespace lowrank::dct_select
