// rsvd_augment: the basis step of dynamical low-rank adapters, for the layers of a model in one call.
//
//   W = U S Vᵀ,  K = U S - lr G V,  L = V Sᵀ - lr Gᵀ U,  S' = S - lr dS                     one step along each
//   U~ = orth of G V beside U,  V~ = orth of Gᵀ U beside V                                  augmentation
//   [ S'        L ᵀ V~ ]
//   [ U~ᵀ K     0      ]  = P diag(sigma) Qᵀ,  U <- [U U~] P,  V <- [V V~] Q,  S <- sigma   truncation
//
// With dS = Uᵀ G V the matrix before truncation is W - lr (the part of G that is tangent to rank r), and no inverse of
// S is taken: S = 0 is as good a start as any. The basis is always augmented by all r directions and cut by the
// singular values, so that what is kept does not depend on the order of columns. Source: Schotthöfer et al., "GeoLoRA",
// arXiv 2410.18720, algorithm 1, with G V and Gᵀ U given instead of recovered through the inverse of S.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "lowrank_core/view.h"

namespace lowrank::rsvd {

// One layer: u [m, r], s [r, r], v [n, r], gv [m, r], gu [n, r], gs [r, r] or uᵀ gv; r <= min(m, n).
struct AugmentInput {
  Matrix u, s, v, gv, gu;
  std::optional<Matrix> gs;
  double weight;  // of its singular values where layers compete for a budget
};

// Where the first `rank` columns (and rows) are written: u [m, width], s [width, width] diagonal, v [n, width], and the
// first r rows of P and Q, left [r, width], right [r, width]. width = augmented_width().
struct AugmentOutput {
  Matrix u, s, v, left, right;
};

struct AugmentRule {
  double lr, tol;
  int64_t min_rank, max_rank;
  std::optional<int64_t> budget;
};

struct AugmentResult {
  int64_t rank;
  double lost;  // what truncation cut off, relative to the Frobenius norm before it
};

// r and what fits beside it on either side.
inline int64_t augmented_width(int64_t m, int64_t n, int64_t r) {
  const int64_t left = m < 2 * r ? m : 2 * r, right = n < 2 * r ? n : 2 * r;
  return left < right ? left : right;
}

// Ranks by the rule: the smallest whose tail is at most tol times the norm, between min_rank and max_rank; with a
// budget the largest weighted values of all layers, no layer below min_rank. Tier D1. Throws NotFinite.
std::vector<AugmentResult> augment_truncate_cpu(const std::vector<AugmentOutput>& out,
                                                const std::vector<AugmentInput>& layers, const AugmentRule& rule);

}  // namespace lowrank::rsvd
