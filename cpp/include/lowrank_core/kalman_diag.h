// kalman_diag: one step of an extended Kalman filter whose covariance is kept diagonal, and its gain.
//
// Step, for parameters theta [n] of variances p [n], the whitened Jacobian M [m, n] and the score g [n]:
//
//   A = M diag(p) Mᵀ,   t = M (p ∘ g)       pass 1 over M, in float64
//   L Lᵀ = I + A,       w = (L Lᵀ)⁻¹ t      [m, m] and [m]
//   s_i = p_i |L⁻¹ M_i|²                    pass 2: the leverage of parameter i, in [0, 1)
//   theta_i += lr p_i (g_i - M_i w)
//   p_i     *= 1 - s_i                      held within [v_i, p_i], v_i = p_i / (1 + p_i |M_i|²)
//
// No exact step leaves these bounds: for R = I, Sherman–Morrison gives p_i (1 - s_i) = p_i / (1 + a), a >= 0, and
// S_-i >= I bounds a by p_i |M_i|². Rounding does: s_i tends to 1 where one parameter alone explains an output.
//
// Gain, for a Jacobian H [m, n] and the noise R [m, m]:  K = diag(p) Hᵀ (H diag(p) Hᵀ + R)⁻¹.
//
// Sources: Puskorius, Feldkamp, "Neurocontrol of nonlinear dynamical systems with Kalman filter trained recurrent
// networks", IEEE Trans. Neural Networks 5, 1994 (the fully decoupled filter); LoKO, arXiv 2410.11551 (the diagonal
// filter for low-rank adapters).
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

#include "lowrank_core/view.h"

namespace lowrank::kalman_diag {

// ---- mathematics: T is double, or a vector of them ---------------------------------------------------------------

// Up to this leverage 1 - s is right to a few units and the bounds are not needed.
constexpr double kSafeLeverage = 0.5;

// The variance after a step where the leverage is safe.
template <class T>
LRC_HD T shrunk(T p, T leverage) {
  return p * (1.0 - leverage);
}

// The variance after a step, from the leverage and |M_i|².
template <class T>
LRC_HD T shrunk(T p, T leverage, T squared_norm) {
  const T found = shrunk(p, leverage), least = p / (1.0 + p * squared_norm);
  const T bounded = found < least ? least : found > p ? p : found;
  return leverage <= kSafeLeverage ? found : bounded;
}

// What the step adds for lr = 1; `explained` is M_i w.
template <class T>
LRC_HD T direction(T p, T score, T explained) {
  return p * (score - explained);
}

// A parameter after a step; `direction` is the one above.
LRC_HD double stepped(double theta, double rate, double direction) { return theta + rate * direction; }

// An entry of the gain from the same one of S⁻¹ H.
template <class T>
LRC_HD T gain_entry(T solved, T p) {
  return solved * p;
}

// A negative variance turns into NaN, which no sum hides.
LRC_HD double checked_variance(double p) { return p < 0.0 ? double(NAN) : p; }

// A positive variance stays positive where the storage type has no number that small.
LRC_HD double stored(double p, double /* before */) { return p; }
LRC_HD float stored(double p, float before) {
  const float rounded = float(p);
  if (rounded >= FLT_MIN || rounded == before) return rounded;
  return before < FLT_MIN ? before : FLT_MIN;
}

// Half the squared length of the change of the whitened outputs is, for a Fisher matrix MᵀM, the Kullback–Leibler
// divergence between the predictions before and after, to second order. That change is M delta = t - A w = w. The rate
// that keeps the divergence within `limit`.
LRC_HD double capped_rate(double lr, double squared_change, double limit) {
  const double divergence = 0.5 * lr * lr * squared_change;
  return divergence > limit ? lr * sqrt(limit / divergence) : lr;
}

// ---- entry points ------------------------------------------------------------------------------------------------

// One tensor of parameters. Vectors are matrices of one row, with any stride; the results may be the inputs.
struct Block {
  Matrix theta, p, jac, score;  // [1, n] floating, [1, n] float32 or float64, [m, n] floating, [1, n] floating
  Matrix new_theta, new_p;      // of the dtypes of theta and p
};

struct Params {
  int64_t outputs = 0;     // m
  double lr = 1.0;         // of theta; p does not see it
  double limit = 1.0e300;  // on the divergence, see capped_rate
};

// One step of one filter over all blocks. False, with nothing written, where p, jac or score hold NaN or infinity, a p
// is negative, or a product of them does not fit float64. p_i = 0 holds a parameter. Without outputs nothing changes.
// Tier D1.
bool step_cpu(const std::vector<Block>& blocks, const Params& params);

enum class Outcome : uint8_t { kDone, kNotFinite, kNotPositive };

// k [n, m] <- the gain for p [1, n], h [m, n] and r, of floating dtypes; r holds all of R, [m, m], or its diagonal,
// [1, m]. Of R the symmetric part is taken. kNotPositive: H diag(p) Hᵀ + R is not positive definite. Tier D1.
Outcome gain_cpu(const Matrix& k, const Matrix& p, const Matrix& h, const Matrix& r, bool diagonal);

}  // namespace lowrank::kalman_diag
