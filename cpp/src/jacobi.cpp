// One-sided Jacobi SVD of a small square matrix, preconditioned by a pivoted QR.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "lowrank_core/dense.h"
#include "lowrank_core/parallel.h"

namespace lowrank {
namespace {

constexpr double kUnit = 0x1p-53;
constexpr int kMaxSweeps = 40;          // quadratic convergence: 5 to 8 are usual
constexpr int64_t kPairsPerTask = 16;   // pairs of columns that one task rotates
constexpr int64_t kSerialBelow = 48;    // smaller problems cost less than the threads' start

// Row i of `columns` is COLUMN i of the matrix that it stands for: every column operation runs along memory.
struct Columns {
  double* data;
  int64_t n;
  double* operator[](int64_t i) const { return data + i * n; }
};

void transpose(double* a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) std::swap(a[i * n + j], a[j * n + i]);
  }
}

// Householder QR with column pivoting of the columns of `a`: a P = Q R. R replaces a (upper triangle, by columns),
// the columns of Q go to `q`, pivot[k] is the original number of column k.
void pivoted_qr(const Columns& a, const Columns& q, std::vector<int64_t>& pivot) {
  const int64_t n = a.n;
  std::vector<double> beta(size_t(n), 0.0), norm2(static_cast<size_t>(n));
  Scratch<double> reflectors(n * n);
  const Columns v{reflectors.data(), n};
  for (int64_t j = 0; j < n; ++j) norm2[size_t(j)] = LRC_AT_LEVEL(dot, a[j], a[j], n);
  for (int64_t k = 0; k < n; ++k) {
    const int64_t best = std::max_element(norm2.begin() + k, norm2.end()) - norm2.begin();
    if (best != k) {
      std::swap_ranges(a[k], a[k] + n, a[best]);
      std::swap(norm2[size_t(k)], norm2[size_t(best)]);
      std::swap(pivot[size_t(k)], pivot[size_t(best)]);
    }
    std::copy(a[k] + k, a[k] + n, v[k] + k);
    beta[size_t(k)] = make_reflector(v[k] + k, n - k);
    for (int64_t j = k; j < n; ++j) {
      reflect(a[j] + k, v[k] + k, beta[size_t(k)], n - k);
      // Recomputed, not downdated: n is small, and a wrong pivot order would cost sweeps.
      norm2[size_t(j)] = LRC_AT_LEVEL(dot, a[j] + k + 1, a[j] + k + 1, n - k - 1);
    }
    std::fill(a[k] + k + 1, a[k] + n, 0.0);
  }
  std::fill(q.data, q.data + n * n, 0.0);
  for (int64_t j = 0; j < n; ++j) {
    q[j][j] = 1.0;
    for (int64_t k = j; k >= 0; --k) reflect(q[j] + k, v[k] + k, beta[size_t(k)], n - k);
  }
}

// Makes columns i and j of x orthogonal by a plane rotation, applied to w as well. False if they already were.
bool orthogonalize_pair(const Columns& x, const Columns& w, int64_t i, int64_t j, double tol) {
  const int64_t n = x.n;
  const double aii = LRC_AT_LEVEL(dot, x[i], x[i], n), ajj = LRC_AT_LEVEL(dot, x[j], x[j], n);
  const double aij = LRC_AT_LEVEL(dot, x[i], x[j], n);
  if (!(std::abs(aij) > tol * std::sqrt(aii) * std::sqrt(ajj))) return false;
  const double zeta = (ajj - aii) / (2.0 * aij);
  const double t = std::copysign(1.0, zeta) / (std::abs(zeta) + std::sqrt(1.0 + zeta * zeta));
  const double c = 1.0 / std::sqrt(1.0 + t * t);
  LRC_AT_LEVEL(rotate, x[i], x[j], c, c * t, n);
  LRC_AT_LEVEL(rotate, w[i], w[j], c, c * t, n);
  return true;
}

// The pair number `p` of round `round` of a round-robin tournament over an even number of players.
std::pair<int64_t, int64_t> opponents(int64_t p, int64_t round, int64_t players) {
  const int64_t circle = players - 1;
  const int64_t i = p == 0 ? players - 1 : (round + p) % circle;
  const int64_t j = (round + circle - p) % circle;
  return {std::min(i, j), std::max(i, j)};
}

// Rotates until every pair of columns is orthogonal to `tol`. The pairs of a round share no column, so they may
// run at the same time without changing a bit of the result.
void jacobi_sweeps(const Columns& x, const Columns& w, double tol) {
  const int64_t n = x.n, players = n + n % 2, pairs = players / 2;
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    std::atomic<bool> rotated{false};
    for (int64_t round = 0; round + 1 < players; ++round) {
      parallel_chunks(pairs, n < kSerialBelow ? pairs : kPairsPerTask, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          const auto [i, j] = opponents(p, round, players);
          if (j < n && orthogonalize_pair(x, w, i, j, tol)) rotated.store(true, std::memory_order_relaxed);
        }
      });
    }
    if (!rotated.load()) return;
  }
}

// Replaces columns from `first` on by unit vectors orthogonal to all before them.
void complete_basis(const Columns& x, int64_t first) {
  const int64_t n = x.n;
  int64_t axis = 0;
  for (int64_t j = first; j < n; ++j) {
    double norm2 = 0.0;
    while (norm2 < 0.5 / double(n)) {  // some axis keeps at least (n - j) / n of its length
      std::fill(x[j], x[j] + n, 0.0);
      x[j][axis++ % n] = 1.0;
      for (int pass = 0; pass < 2; ++pass) {
        for (int64_t k = 0; k < j; ++k) {
          LRC_AT_LEVEL(axpy, x[j], -LRC_AT_LEVEL(dot, x[k], x[j], n), x[k], n);
        }
      }
      norm2 = LRC_AT_LEVEL(dot, x[j], x[j], n);
    }
    const double inverse = 1.0 / std::sqrt(norm2);
    for (int64_t i = 0; i < n; ++i) x[j][i] *= inverse;
  }
}

}  // namespace

void jacobi_svd(double* a, int64_t n, double* u, double* s, double* vt, double tol) {
  if (n == 0) return;
  // a P = Q R and L = Rᵀ. Rotations W make the columns of L W = X diag(s) orthogonal, hence
  // a = Q Lᵀ Pᵀ = (Q W) diag(s) (P X)ᵀ. The pivoting grades L, which is what makes the sweeps few.
  std::vector<int64_t> pivot(static_cast<size_t>(n));
  std::iota(pivot.begin(), pivot.end(), int64_t{0});
  transpose(a, n);
  Scratch<double> left(n * n), right(n * n);
  const Columns r{a, n}, w{left.data(), n}, x{right.data(), n};
  pivoted_qr(r, w, pivot);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) x[i][j] = r[j][i];
  }
  jacobi_sweeps(x, w, std::max(tol, double(n) * kUnit));

  std::vector<double> norm(static_cast<size_t>(n));
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) norm[size_t(j)] = std::sqrt(LRC_AT_LEVEL(dot, x[j], x[j], n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return norm[size_t(i)] > norm[size_t(j)]; });

  // A column below n units of the largest is rounding noise: its direction is replaced, its size is kept.
  const double floor = double(n) * kUnit * norm[size_t(order[0])];
  int64_t sound = 0;
  const Columns sorted{vt, n};
  for (int64_t j = 0; j < n; ++j) {
    const double* column = x[order[size_t(j)]];
    s[j] = norm[size_t(order[size_t(j)])];
    if (s[j] > floor) ++sound;
    for (int64_t i = 0; i < n; ++i) sorted[j][i] = s[j] > floor ? column[i] / s[j] : 0.0;
    for (int64_t i = 0; i < n; ++i) u[i * n + j] = w[order[size_t(j)]][i];
  }
  complete_basis(sorted, sound);
  std::vector<double> unpivoted(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < n; ++i) unpivoted[size_t(pivot[size_t(i)])] = sorted[j][i];
    std::copy(unpivoted.begin(), unpivoted.end(), sorted[j]);
  }
}

}  // namespace lowrank
