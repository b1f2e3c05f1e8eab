// rsvd: randomized singular value decomposition and the range finder under every refresh.
//
//   X = orth(Aᵀ Omega), then X = orth(A X), X = orth(Aᵀ X) and so on;      a block of directions, a half iteration each
//   W = X after 2 niter + 1 half iterations;  image of W = U diag(s) Rᵀ;  W R    the best answer within the span of W
//
// Where A is so large that a product with it costs more than a small problem of twice the width, the last half
// iterations are a block Krylov step instead: W = [X, orth(Aᵀ orth(A X))] from X after max(1, 2 niter - 2) of them.
// That is two less, and more exact, since W still holds X: see docs/adr/0007-randomized-svd.md for figures. Omega [m,
// l] is sparse: a few entries a row, so that its product costs one pass over A. A basis P of A's columns makes the warm
// start X = orth(Aᵀ [P, fresh random columns]), which counts as the first iteration; without the fresh columns a
// direction orthogonal to P could never enter. float64 input is computed in float64, everything else in float32.
// Source: Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithms 4.4 and 5.1;
// Musco & Musco, "Randomized block Krylov methods for stronger and faster approximate SVD", NeurIPS 2015, algorithm 2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "lowrank_core/gemm.h"
#include "lowrank_core/orthonormalize.h"
#include "lowrank_core/philox.h"
#include "lowrank_core/view.h"

namespace lowrank::rsvd {

constexpr uint32_t kSketchStream = 1;  // docs/numerics.md
constexpr int64_t kSketchNonzeros = 8;
constexpr int64_t kKrylovPays = 256;  // measured: a product of m n l against an eigenproblem of (2 l)^3

struct Params {
  int64_t oversample = 10;
  int64_t niter = 2;
  uint64_t seed = 0;
  Math math = Math::kFloat32;
};

// Non-zero entries in each row of a sketch.
LRC_HD int64_t sketch_nonzeros(int64_t cols) { return cols < kSketchNonzeros ? cols : kSketchNonzeros; }

struct SketchEntry {
  int64_t col;
  float value;
};

// Non-zero number t of row i of a sketch with `cols` columns: the columns are cut into as many strips as a row has
// non-zeros, each strip holds one, uniform in [-1, 1) on a grid of 2^-23. Host and device, the same bits.
LRC_HD SketchEntry sketch_entry(uint64_t seed, uint32_t step, int64_t cols, int64_t i, int64_t t) {
  const int64_t count = sketch_nonzeros(cols);
  const philox::Block block = philox::block(seed, uint64_t(i * kSketchNonzeros + t) >> 1, kSketchStream, step);
  const bool odd = (t & 1) != 0;
  const uint32_t place = odd ? block.v[2] : block.v[0], size = odd ? block.v[3] : block.v[1];
  const int64_t begin = cols * t / count, width = cols * (t + 1) / count - begin;
  return {begin + int64_t((uint64_t(place) * uint64_t(width)) >> 32), float(int32_t(size) >> 8) * 0x1p-23f};
}

// The sign rule: of each left vector the entry of the largest magnitude, the first of equal ones, is positive.
// `dominant`, folded over the entries in order, finds it.
template <class T>
LRC_HD T dominant(T kept, T entry) {
  const T size = entry < T(0) ? -entry : entry, kept_size = kept < T(0) ? -kept : kept;
  return size > kept_size ? entry : kept;
}
template <class T>
LRC_HD T sign_of(T dominant_entry) {
  return dominant_entry < T(0) ? T(-1) : T(1);
}

// Width of the sketch: rank (or the basis' width, if larger) plus oversampling, at most min(m, n).
inline int64_t sketch_width(int64_t m, int64_t n, int64_t rank, int64_t basis_cols, int64_t oversample) {
  const int64_t known = rank > basis_cols ? rank : basis_cols, limit = m < n ? m : n;
  return known < limit && oversample < limit - known ? known + oversample : limit;
}

// Whether a block Krylov step is cheaper than the half iterations that it saves.
inline bool krylov_pays(int64_t m, int64_t n, int64_t l) {
  return m * n >= kKrylovPays * l * l && 2 * l <= std::min(m, n);
}

// out [rows, cols] contiguous float32: a sketch with its zeros. Tier D0.
void sketch_cpu(const View& out, uint64_t seed, uint32_t step);
void sketch_cuda(const View& out, uint64_t seed, uint32_t step, void* stream);

// a [..., m, n] -> u [..., m, r], s [..., r] descending, vh [..., r, n]; the outputs are float32, or float64 for a
// float64 input. Every matrix of a batch sees the same sketch. Tier D1.
void rsvd_cpu(const View& u, const View& s, const View& vh, const View& a, const std::optional<View>& basis,
              const Params& params);

// One matrix whose leading left singular vectors are wanted: a [m, n] -> q [m, r], from a basis if there is one.
struct RangeJob {
  Matrix q, a;
  std::optional<Matrix> basis;
  uint64_t seed;
};

// A list of them, of any shapes: the refresh of a whole model in one call. `params.seed` is not used.
void range_finder_cpu(const std::vector<RangeJob>& jobs, const Params& params);

// b [..., m, k], a [..., k, n] -> the leading factors of b a, which is never formed.
void factored_svd_cpu(const View& u, const View& s, const View& vh, const View& b, const View& a);

// y [..., m, n], m >= n -> q. False where `method` breaks down (kAuto and kHouseholder never do).
bool orthonormalize_cpu(const View& q, const View& y, OrthMethod method);

// One matrix whose factors q [m, cap], b [cap, n], contiguous, are to grow.
struct QbJob {
  Matrix q, b, a;
  uint64_t seed;
};

struct QbResult {
  int64_t rank;
  double captured;
};

// Grows an orthonormal basis of each matrix of a list block by block until it captures `energy` of ||a||_F², or q is
// full. Gives the smallest rank that does (with ties to working precision) and the share captured; the first `rank`
// columns and rows are written: the rows of b are orthogonal, longest first. Source: Yu, Gu, Li, "Efficient randomized
// algorithms for the fixed-precision low-rank matrix approximation", SIAM J. Matrix Anal. Appl. 39 (2018), algorithm 2
// (randQB_EI).
std::vector<QbResult> qb_cpu(const std::vector<QbJob>& jobs, double energy, int64_t block, int64_t niter);

}  // namespace lowrank::rsvd
