// chain_lr: gradients of low-rank adapters as chains of thin products.
//
//   chain of matrices      evaluated in the order that costs least, no square in between that the order can avoid
//   adapter layer          y = x Wᵀ + scale ((x P) Mᵀ) Qᵀ;   LoRA: P = Aᵀ, Q = B, no M;   GeoLoRA: P = V, M = S, Q = U
//   gradients of A and B   divided by the Gram matrix of the other factor, a list of pairs in one call
//   attention adapter      scores = Q (W + scale B A) Kᵀ, p = f ∘ (dO Vᵀ - rho) with f = softmax of a row:
//                          dB = scale Qᵀ p K Aᵀ,  dA = scale Bᵀ Qᵀ p K;   p is never held as a matrix
//
// The exact gradient of attention goes over tiles of scores with running row statistics; the chained one replaces exp
// by features, f = U Vᵀ / row sums, and uses that p is then a Hadamard product of two thin products,
//   ((U Vᵀ) ∘ (G Wᵀ)) M = sum over c of G[:, c] ∘ (U (Vᵀ (W[:, c] ∘ M))),
// which costs k c w for each row, whatever the length. Source: "Computational limits of low-rank adaptation for
// transformers", arXiv 2406.03136, section 3, in conformable order; online statistics: Milakov, Gimelshein, "Online
// normalizer calculation for softmax", arXiv 1805.02867, algorithm 3.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "lowrank_core/philox.h"
#include "lowrank_core/view.h"

namespace lowrank::chain_lr {

// ---- the order of a chain ----------------------------------------------------------------------------------------

// What reading or writing one number costs beside one multiply-add. Measured: a product reaches some 16 multiply-adds
// in the time that one number takes from the second cache to a panel, so for thin factors the traffic decides.
constexpr double kTraffic = 16.0;

// Cost of one product [m, k] [k, n] in multiply-adds.
LRC_HD double product_cost(double m, double k, double n) { return m * k * n + kTraffic * (m * k + k * n + m * n); }

// A factor of a chain: [rows, cols], `count` of them (1, or the size of the batch).
struct Factor {
  int64_t rows, cols, count;
};

// split[i][j]: factors i .. split and split + 1 .. j are multiplied last, for i < j.
using Plan = std::vector<std::vector<int64_t>>;

// The cheapest order, the leftmost split on ties. Source: Cormen, Leiserson, Rivest, Stein, "Introduction to
// Algorithms", 4th ed., section 14.2. Cubic in the number of factors.
Plan plan_chain(const std::vector<Factor>& factors);

// out [..., m, n] <- the product of `matrices`, each a matrix or a batch with the leading dimensions of `out`. Products
// in between are held in float32, float64 for a float64 result, and rounded once into `out`. Tier D1.
void chain_matmul_cpu(const View& out, const std::vector<View>& matrices);

// ---- the adapter layer -------------------------------------------------------------------------------------------

// Low-rank part of a layer: first [d_in, r], middle [r, r] or null, last [d_out, r]; scale ((x first) middleᵀ) lastᵀ.
struct Adapter {
  Matrix first, last;
  std::optional<Matrix> middle;
  double scale;
};

// y [t, d_out] <- x wᵀ + adapter + bias; w [d_out, d_in] or null, bias a row [1, d_out] or null. One rounding.
void adapter_linear_cpu(const Matrix& y, const Matrix& x, const std::optional<Matrix>& w, const Adapter& adapter,
                        const std::optional<Matrix>& bias);

// With G = dyᵀ x, which is not formed: last_grad [d_out, r] <- scale G first, first_grad [d_in, r] <- scale Gᵀ last,
// middle_grad [r, r] <- scale lastᵀ G first where there is one. `adapter.middle` is not read: for LoRA these are the
// gradients of B and of Aᵀ, for GeoLoRA those of K = U S, of L = V Sᵀ and of S.
struct AdapterGradient {
  Matrix first, last;
  std::optional<Matrix> middle;
};
void adapter_gradient_cpu(const AdapterGradient& out, const Matrix& dy, const Matrix& x, const Adapter& adapter);

// ---- gradients of factors ----------------------------------------------------------------------------------------

// out [r, k] <- (yᵀ y + damping I)⁻¹ grad for the factor y [l, r] of the other side, damping > 0: the gradient of A
// with y = B, and transposed that of B with y = Aᵀ. In float64, rounded once. Source: Zhang, Pilanci, "Riemannian
// preconditioned LoRA for fine-tuning foundation models", arXiv 2402.02347, eq. 3.
struct GramSolve {
  Matrix out, grad, factor;
  double damping;
};

// All at once; each Gram matrix and each run of columns is a task. Tier D1. No `out` may share memory with an operand.
void gram_solve_cpu(const std::vector<GramSolve>& list);

// ---- features of exp ---------------------------------------------------------------------------------------------

// 1 + x + x²/2 + ... + x^degree / degree!
template <class T>
LRC_HD T taylor_exp(T x, int64_t degree) {
  T sum = T(1);
  for (int64_t k = degree; k >= 1; --k) sum = T(1) + x / T(k) * sum;
  return sum;
}

// Relative error of softmax rows whose scores stay within [-largest, largest] where exp is cut after an even degree:
// the kernel is too large by at most `above` at -largest, too small by at most `below` at +largest, and a row sum is
// off by no more than either. Infinite where nothing is left of it.
LRC_HD double taylor_row_error(double largest, int64_t degree) {
  const double above = taylor_exp(-largest, degree) * exp(largest) - 1.0;
  const double below = 1.0 - taylor_exp(largest, degree) * exp(-largest);
  return below < 1.0 ? (above + below) / (1.0 - below) : HUGE_VAL;
}

// A row error eta turns p by at most about 3 eta f max |dP|: eta from f itself, eta from rho, eta from their product.
constexpr double kGradientFactor = 3.0;
LRC_HD double taylor_error(double largest, int64_t degree) {
  return kGradientFactor * taylor_row_error(largest, degree);
}

// ---- a row of a softmax ------------------------------------------------------------------------------------------

// A row whose keys come tile by tile: the largest score so far and, relative to its exponential, the sums of the
// weights and of the weights times dP.
template <class T>
struct RunningRow {
  T max = T(-HUGE_VAL), sum = T(0), weighted = T(0);

  // To a larger score; `factor` is exp(max - larger), by which every other sum over the keys so far shrinks, too.
  LRC_HD void grow(T larger, T factor) {
    sum *= factor;
    weighted *= factor;
    max = larger;
  }
  // What scores lose before exp. Nothing seen yet: every score is -infinity, and less 0 remains so.
  LRC_HD T shift() const { return max > T(-HUGE_VAL) ? max : T(0); }
  LRC_HD void add(T weights, T products) {
    sum += weights;
    weighted += products;
  }
  LRC_HD T scale() const { return sum > T(0) ? T(1) / sum : T(0); }
  LRC_HD T rho() const { return weighted * scale(); }
};

// An entry of p K from sum e dP K and sum e K over the keys of a row: (sum e dP K - rho sum e K) / sum e.
template <class T>
LRC_HD T gradient_entry(T products, T keys, T rho, T scale) {
  return (products - rho * keys) * scale;
}

// ---- the gradient of an attention adapter ------------------------------------------------------------------------

// Views have one set of leading dimensions: queries [..., L, d_q], keys [..., M, d_k], values [..., M, d_v],
// dout [..., L, d_v], mask [..., M] of uint8 (0: no query sees the key). Causal: query i sees keys 0 .. i, L = M.
struct Attention {
  View queries, keys, values, dout;
  std::optional<View> mask;
  Matrix weight, a, b;  // [d_q, d_k], [r, d_k], [d_q, r]
  double scale;
  bool causal;
};

// da [r, d_k], db [d_q, r], float64, summed over the leading dimensions. Tier D1. Throws NotFinite.
struct AttentionGradient {
  Matrix da, db;
};
void attention_exact_cpu(const AttentionGradient& out, const Attention& problem);

// By the features of `left` [..., L, k] and `right` [..., M, k], or by all monomials of a degree where there are none.
struct Features {
  std::optional<View> left, right;
  int64_t degree;
};
void attention_chained_cpu(const AttentionGradient& out, const Attention& problem, const Features& features);

// Effective queries [..., L, d_k] and keys less their mean over what is seen [..., M, d_k]; what features are taken of.
void attention_operands_cpu(const View& queries, const View& keys, const Attention& problem);

// The largest score at which `taylor_error` of a degree is at most `error`.
double taylor_score(double error, int64_t degree);

// A bound of all |scores| after the mean key is taken off that is at most `enough`; where a score is larger than that,
// one that is. By the norms of queries and keys, and a look at the scores that these leave in doubt.
double score_bound_cpu(const Attention& problem, double enough);

// Relative Frobenius error of p on a few rows, evenly spaced, where it comes from these features.
double sampled_error_cpu(const Attention& problem, const Features& features);

}  // namespace lowrank::chain_lr
