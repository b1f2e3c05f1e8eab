// subspace_step_following: subspaces that follow the gradient by one power step (LDAdam), for a list of weights, with
// the moments carried along and what is fed back so far.
//
//   A = G + E   [m, n]     B = rho P M / (1 - b1^t) + (1 - rho) A, which is not formed     P' = orth(B Bᵀ P)
//   R = P'ᵀ A   [r, n]     E <- A + b1 / (1 - b1) P M
//   T = P'ᵀ P              M' = T M     V' = c2 |(T o T) (V / c2 - (M / c1)²) + (M' / c1)²|,   c = 1 - beta^t
//
// t counts the steps before this one. What the step itself takes from E is the caller's.
// Source: Robert et al. 2024 (LDAdam, arXiv 2410.16103), algorithm 1, and V' in the form of its code.
#pragma once

#include <cstdint>
#include <vector>

#include "lowrank_core/gemm.h"
#include "lowrank_core/view.h"

namespace lowrank::subspace_step {

// ---- mathematics -------------------------------------------------------------------------------------------------

// What turns of the second moment: a variance, each of whose parts is corrected by itself.
template <class T>
LRC_HD T variance(T second, T first, T correction1, T correction2) {
  const T mean = first / correction1;
  return second / correction2 - mean * mean;
}
// The second moment of a `turned` variance.
template <class T>
LRC_HD T second_of(T turned, T first, T correction1, T correction2) {
  const T mean = first / correction1, sum = turned + mean * mean;
  return (sum < T(0) ? -sum : sum) * correction2;
}

// ---- entry points ------------------------------------------------------------------------------------------------

// One weight, turned so that the basis is on the left. All but g are of the working dtype, float32 or float64.
struct FollowJob {
  Matrix w;              // [m, n], E before and after
  Matrix g;              // [m, n], any floating dtype
  Matrix basis;          // [m, r], P before, P' after
  Matrix low;            // [r, n], R; dense, rows or columns first
  Matrix first, second;  // [r, n], M and V, each with the strides of low
  int64_t step;          // t, at least 1
};

struct FollowParams {
  double beta1 = 0.9, beta2 = 0.999, rho = 0.9;
  bool maximize = false;
  Math math = Math::kFloat32;
};

// Tier D1.
void follow_cpu(const std::vector<FollowJob>& jobs, const FollowParams& params);

}  // namespace lowrank::subspace_step
