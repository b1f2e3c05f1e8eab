// rsvd: randomized singular value decomposition and the range finder under every refresh.
//
//   Y = A Omega, then niter times: Z = orth(Aᵀ Q), Q = orth(A Z);  B = Qᵀ A = Ub S Vᵀ;  U = Q Ub
//
// Omega [n, l] has Rademacher entries, a function of (seed, element). With a basis P [m, k] the sketch is replaced by
// Q = [P, fresh random columns]: the fresh ones are needed, since a direction orthogonal to P could otherwise
// never enter. float64 input is computed in float64, everything else in float32.
// Source: Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithms 4.4, 5.1.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "lowrank_core/gemm.h"
#include "lowrank_core/orthonormalize.h"
#include "lowrank_core/philox.h"
#include "lowrank_core/view.h"

namespace lowrank::rsvd {

constexpr uint32_t kSketchStream = 1;  // docs/numerics.md

struct Params {
  int64_t oversample = 10;
  int64_t niter = 2;
  uint64_t seed = 0;
  Math math = Math::kFloat32;
};

// Row i, column j of a sketch with `cols` columns. Host and device.
LRC_HD float sketch_entry(uint64_t seed, uint32_t step, int64_t cols, int64_t i, int64_t j) {
  const uint64_t element = uint64_t(i) * uint64_t(cols) + uint64_t(j);
  return philox::sign(philox::block(seed, element >> 7, kSketchStream, step), element);
}

// Width of the sketch: rank (or the basis' width, if larger) plus oversampling, at most min(m, n).
inline int64_t sketch_width(int64_t m, int64_t n, int64_t rank, int64_t basis_cols, int64_t oversample) {
  const int64_t wanted = (rank > basis_cols ? rank : basis_cols) + oversample;
  const int64_t limit = m < n ? m : n;
  return wanted < limit ? wanted : limit;
}

// out [rows, cols] contiguous float32: the sketch itself. Tier D0.
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

// Grows an orthonormal basis block by block until it captures `energy` of ||a||_F², or q is full. Returns the
// smallest rank that does (with ties to working precision) and the share captured. q [m, cap], b [cap, n], contiguous;
// the first `rank` columns and rows are written: the rows of b are orthogonal, longest first. Source: Yu, Gu, Li,
// "Efficient randomized algorithms for the fixed-precision low-rank matrix approximation", SIAM J. Matrix Anal. Appl.
// 39 (2018), algorithm 2 (randQB_EI).
struct QbResult {
  int64_t rank;
  double captured;
};
QbResult qb_cpu(const View& q, const View& b, const View& a, double energy, int64_t block, int64_t niter,
                uint64_t seed);

}  // namespace lowrank::rsvd
