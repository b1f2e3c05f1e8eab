// subspace_step: one optimizer step for a list of weights whose moments live in a subspace, without any temporary of a
// weight's size.
//
//   R = Pᵀ G   [r, n]                       low-rank gradient; all of them before anything is changed
//   N = rule(R)                             moments in float32, bfloat16 or 8-bit blocks
//   W <- (1 - lr weight_decay) W - lr (scale P N + S)
//
//   residual      S
//   drop          0                                                                           GaLore
//   scaled        c phi_j (G - kappa P R)_j,   phi_j = |N_j| / |R_j|                          Fira
//   sign          weight * sign(G - P R)                                                      FRUGAL
//   channel       c scale phi_j G_j, in place of scale P N                                    APOLLO
//   tensor        the same with one phi = |N| / |R|                                           APOLLO-Mini
//
// Column j is a channel; of `channel` no phi_j is above `cap` times the median of those that are not 0. c <= 1 limits
// the growth of |S| from step to step. A basis on the right is one on the left of the transposed matrices. Sources:
// Zhao et al. 2024 (GaLore, arXiv 2403.03507), Chen et al. 2024 (Fira, 2410.01623, equations of its section 3), Zmushko
// et al. 2024 (FRUGAL, 2411.07837), Zhu et al. 2024 (APOLLO, 2412.05270).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "lowrank_core/blockwise.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/view.h"

namespace lowrank::subspace_step {

enum class Rule : uint8_t { kAdam, kAdaBelief, kLion, kMomentum, kAverage, kGiven };  // kGiven: R is N already
enum class Residual : uint8_t { kDrop, kScaled, kSign, kChannel, kTensor };

// Whether a rule keeps a moment, and a second one.
LRC_HD bool has_first(Rule rule) { return rule != Rule::kGiven; }
LRC_HD bool has_second(Rule rule) { return rule == Rule::kAdam || rule == Rule::kAdaBelief; }

// ---- mathematics -------------------------------------------------------------------------------------------------

// What a rule needs in step number t >= 1.
template <class T>
struct Factors {
  T beta1, beta2, rest1, rest2;  // rest = 1 - beta
  T correction1, root2, eps;     // 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
};

template <class T>
Factors<T> factors(double beta1, double beta2, double eps, int64_t t) {
  return {T(beta1),
          T(beta2),
          T(1.0 - beta1),
          T(1.0 - beta2),
          T(1.0 / (1.0 - std::pow(beta1, double(t)))),
          T(1.0 / std::sqrt(1.0 - std::pow(beta2, double(t)))),
          T(eps)};
}

LRC_HD float root(float x) { return sqrtf(x); }
LRC_HD double root(double x) { return sqrt(x); }

// Adam's direction from its moments, torch's eps outside the bias correction. `root_v` becomes root(v), by which second
// moments are coded, too.
template <class T>
LRC_HD T corrected(const Factors<T>& f, T m, T v, T& root_v) {
  root_v = root(v);
  return m * f.correction1 / (root_v * f.root2 + f.eps);
}

// Kingma, Ba 2015 (Adam), algorithm 1.
template <class T>
LRC_HD T adam(const Factors<T>& f, T g, T& m, T& v, T& root_v) {
  m += f.rest1 * (g - m);
  v = f.beta2 * v + f.rest2 * g * g;
  return corrected(f, m, v, root_v);
}
template <class T>
LRC_HD T adam(const Factors<T>& f, T g, T& m, T& v) {
  T root_v;
  return adam(f, g, m, v, root_v);
}

// Zhuang et al. 2020 (AdaBelief, arXiv 2010.07468), algorithm 2: v is the variance around the mean m, and eps stands in
// both places.
template <class T>
LRC_HD T adabelief(const Factors<T>& f, T g, T& m, T& v, T& root_v) {
  m += f.rest1 * (g - m);
  const T apart = g - m;
  v = f.beta2 * v + f.rest2 * apart * apart + f.eps;
  return corrected(f, m, v, root_v);
}

template <class T>
LRC_HD T sign(T x) {
  return T(int(x > T(0)) - int(x < T(0)));
}

// Chen et al. 2023 (Lion, arXiv 2302.06675), algorithm 2.
template <class T>
LRC_HD T lion(const Factors<T>& f, T g, T& m) {
  const T direction = sign(f.beta1 * m + f.rest1 * g);
  m = f.beta2 * m + f.rest2 * g;
  return direction;
}

// Heavy ball as in torch.optim.SGD: no dampening.
template <class T>
LRC_HD T momentum(const Factors<T>& f, T g, T& m) {
  m = f.beta1 * m + g;
  return m;
}

// A running mean. Returns what it held before this step, decayed: what is left of it in the mean.
template <class T>
LRC_HD T average(const Factors<T>& f, T g, T& m) {
  const T before = f.beta1 * m;
  m += f.rest1 * (g - m);
  return before;
}

// phi = |N_j| / |R_j| from squared norms, of a channel or of all of them. The constant is Fira's and APOLLO's.
LRC_HD double channel_scale(double squared_n, double squared_r) { return root(squared_n) / (root(squared_r) + 1e-8); }

// |S|² of S = phi (G - kappa P R) from squared norms, of phi G, phi R = Pᵀ (phi G) and P (phi R).
LRC_HD double residual_norm(double g, double r, double pr, double kappa) {
  const double squared = g - 2.0 * kappa * r + kappa * kappa * pr;
  return squared > 0.0 ? squared : 0.0;
}

// The factor c that keeps `norm` below `growth` times the previous one. A previous norm of rounding size, or a zero,
// says nothing: kept as it is, it would hold all later steps down. Fira, limiter of section 3.3, with that floor.
LRC_HD double limiter(double norm, double previous, double growth, double floor) {
  return previous > floor && norm > growth * previous ? growth * previous / norm : 1.0;
}
LRC_HD double limiter_floor(double elements) { return 1e-12 * root(elements); }

// Below this, an entry of G - P R is the rounding of P R: 8 u sqrt(r) of the largest of G.
LRC_HD double sign_threshold(double largest, double rank, double unit) { return 8.0 * unit * root(rank) * largest; }

// Of numbers or, like the write-back below, of vectors of them.
template <class T>
LRC_HD T sign_above(T x, T threshold) {
  const T zero{}, one = zero + 1.0f;
  return (x > threshold ? one : zero) - (x < -threshold ? one : zero);
}

// ---- the write-back ----------------------------------------------------------------------------------------------

// W <- keep W - step (left right) - S, with one of
//   scaled            S = gain_j g_j      left right = P (scale N - kappa phi R); step = lr
//   channel, tensor   S = gain_j g_j      left right = nothing
//   sign              S = gain sign_above(g - other, threshold)
LRC_HD double keep_factor(double lr, double weight_decay) { return 1.0 - lr * weight_decay; }

template <class T>
LRC_HD T write_back(T keep, T w, T step, T sum) {
  return keep * w - step * sum;
}
template <class T>
LRC_HD T less_scaled(T w, T gain, T g) {
  return w - gain * g;
}
template <class T>
LRC_HD T less_sign(T w, T gain, T g, T other, T threshold) {
  return w - gain * sign_above(g - other, threshold);
}

// An entry of scale N - share (phi R).
template <class T>
LRC_HD T folded_direction(T scale, T n, T share, T r) {
  return scale * n - share * r;
}

// ---- draws -------------------------------------------------------------------------------------------------------

// Where the draw for element (i, j) of a weight [rows, cols] stands: by its row-major number in the weight as the user
// sees it, of which this one is the transpose if `transposed`.
LRC_HD philox::Position weight_draw(int64_t i, int64_t j, int64_t rows, int64_t cols, bool transposed, int64_t step) {
  return {uint64_t(transposed ? j * rows + i : i * cols + j), blockwise::kParameterStream, uint32_t(step)};
}

// For an element of a moment of `size` elements, in the order of its memory; the second moment draws behind the first.
LRC_HD philox::Position moment_draw(int64_t element, int64_t size, bool second, int64_t step) {
  return {uint64_t(element + (second ? size : 0)), blockwise::kStateStream, uint32_t(step)};
}

// ---- entry points ------------------------------------------------------------------------------------------------

// How a moment is stored: in the working precision, as bfloat16 rounded stochastically (rounded to nearest a second
// moment would never decay), or as blockwise codes (SignedMap, RootMap for the second), rounded stochastically.
enum class Storage : uint8_t { kWork, kBFloat16, kBlocks };

struct Moment {
  Storage storage = Storage::kWork;
  void* values = nullptr;  // as many as `low` has elements, in the order of its memory
  float* scales = nullptr;
};

// One weight, turned so that the basis is on the left.
struct Job {
  Matrix w, g;      // [m, n], any floating dtypes
  Matrix basis;     // [m, r]
  Matrix low;       // [r, n], float32, float64 for a float64 weight; dense, rows or columns first
  bool transposed;  // w is the transpose of the weight that the user sees
  Moment first, second;
  int64_t step;   // its number, from 1
  uint64_t seed;  // of its draws
  float* limit;   // previous norm of S, or null: no limiter
};

struct Params {
  Rule rule = Rule::kAdam;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double lr = 1e-3, weight_decay = 0.0, scale = 1.0;
  Residual residual = Residual::kDrop;
  double residual_scale = 1.0;                           // kappa, or the weight of `sign`
  double cap = std::numeric_limits<double>::infinity();  // of phi_j, in medians; of `channel`
  double growth = 1.01;
  bool maximize = false, stochastic = false;
  Math math = Math::kFloat32;
};

// low <- Pᵀ G of every job (- Pᵀ G to maximize). False if one of them is not finite. Tier D1.
bool project_cpu(const std::vector<Job>& jobs, const Params& params);

// Moments and weights, from `low` as project_cpu left it; overwrites it. Tier D1; stochastic rounding draws from
// (seed, element, step).
void update_cpu(const std::vector<Job>& jobs, const Params& params);

// to <- from, bfloat16 stochastically with the words that update_cpu draws for a weight, other dtypes to nearest.
void round_cpu(const Matrix& to, const Matrix& from, uint64_t seed, int64_t step);

// The codecs of moments by themselves, with the words that update_cpu draws: `second` says which moment it is.
void encode_cpu(const Moment& to, const float* values, int64_t size, bool second, uint64_t seed, int64_t step);
void decode_cpu(float* values, const Moment& from, int64_t size, bool second);

}  // namespace lowrank::subspace_step
