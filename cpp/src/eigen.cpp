// Eigenvectors of a symmetric matrix: Householder tridiagonalization, then QL with implicit shifts. The classical
// pair (Bowdler, Martin, Reinsch, Wilkinson, "The QR and QL algorithms for symmetric matrices", Numer. Math. 11,
// 1968), arranged so that every inner loop runs along a row.
#include <algorithm>
#include <cmath>
#include <vector>

#include "lowrank_core/dense.h"
#include "lowrank_core/parallel.h"

namespace lowrank {
namespace {

// A column of the scaled matrix no longer than this is dropped: its square would lose bits, and it changes nothing.
constexpr double kNegligible = 0x1p-500;
constexpr int kMaxIterations = 60;    // for each eigenvalue; about 2 are usual
constexpr int64_t kRowsPerTask = 64;  // rows of the matrix that one task updates

// Replaces the trailing part of `a` by its tridiagonal form; row k of `a` keeps reflector k from column k + 1 on.
void tridiagonalize(double* a, int64_t n, double* diagonal, double* off, double* beta) {
  std::vector<double> product(static_cast<size_t>(n));
  double* p = product.data();
  for (int64_t k = 0; k + 1 < n; ++k) {
    const int64_t size = n - k - 1;
    double* v = a + k * n + k + 1;  // by symmetry the column below the diagonal, too
    const double first = v[0], norm = std::sqrt(LRC_AT_LEVEL(dot, v, v, size));
    diagonal[k] = a[k * n + k];
    beta[k] = make_reflector(v, size, kNegligible);
    off[k] = beta[k] == 0.0 ? first : -std::copysign(norm, first);
    if (beta[k] == 0.0) continue;
    // A <- A - v wᵀ - w vᵀ with p = beta A v, w = p - (beta/2) (pᵀ v) v.
    parallel_chunks(size, kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        p[i] = beta[k] * LRC_AT_LEVEL(dot, a + (k + 1 + i) * n + k + 1, v, size);
      }
    });
    LRC_AT_LEVEL(axpy, p, -0.5 * beta[k] * LRC_AT_LEVEL(dot, p, v, size), v, size);
    parallel_chunks(size, kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        LRC_AT_LEVEL(axpy2, a + (k + 1 + i) * n + k + 1, -v[i], p, -p[i], v, size);
      }
    });
  }
  diagonal[n - 1] = a[n * n - 1];
}

// Row j of `rows` becomes column j of the product of the reflectors.
void accumulate(const double* a, int64_t n, const double* beta, double* rows) {
  parallel_for(n, [&](int64_t j) {
    double* q = rows + j * n;
    std::fill(q, q + n, 0.0);
    q[j] = 1.0;
    for (int64_t k = std::min(j, n - 1) - 1; k >= 0; --k) reflect(q + k + 1, a + k * n + k + 1, beta[k], n - k - 1);
  });
}

// sqrt(f² + g²) without squares that vanish.
double length(double f, double g) {
  const double large = std::max(std::abs(f), std::abs(g)), small = std::min(std::abs(f), std::abs(g));
  if (large == 0.0) return 0.0;
  const double ratio = small / large;
  return large * std::sqrt(1.0 + ratio * ratio);
}

// One QL sweep on the unreduced block [l, m] of the tridiagonal matrix; the rotations go to the rows of `rows`.
void ql_sweep(double* d, double* e, int64_t l, int64_t m, double* rows, int64_t n) {
  const double g0 = (d[l + 1] - d[l]) / (2.0 * e[l]);
  double g = d[m] - d[l] + e[l] / (g0 + std::copysign(std::hypot(g0, 1.0), g0));
  double s = 1.0, c = 1.0, p = 0.0;
  for (int64_t i = m - 1; i >= l; --i) {
    const double f = s * e[i], b = c * e[i], r = length(f, g);
    e[i + 1] = r;
    if (r == 0.0) {  // an exact split: undo the shift and let the caller look again
      d[i + 1] -= p;
      e[m] = 0.0;
      return;
    }
    s = f / r;
    c = g / r;
    g = d[i + 1] - p;
    const double t = (d[i] - g) * s + 2.0 * c * b;
    p = s * t;
    d[i + 1] = g + p;
    g = c * t - b;
    LRC_AT_LEVEL(rotate, rows + i * n, rows + (i + 1) * n, c, s, n);
  }
  d[l] -= p;
  e[l] = g;
  e[m] = 0.0;
}

}  // namespace

void symmetric_eigenvectors(double* a, int64_t n, double* rows, double* d) {
  if (n == 0) return;
  const double scale = scale_of(row_major(a, n, n));
  for (int64_t i = 0; i < n * n; ++i) a[i] /= scale;
  std::vector<double> e(static_cast<size_t>(n), 0.0), beta(static_cast<size_t>(n), 0.0);
  tridiagonalize(a, n, d, e.data(), beta.data());
  accumulate(a, n, beta.data(), rows);
  for (int64_t l = 0; l < n; ++l) {
    for (int iteration = 0; iteration < kMaxIterations; ++iteration) {
      int64_t m = l;
      while (m + 1 < n && std::abs(e[size_t(m)]) > 0x1p-53 * (std::abs(d[m]) + std::abs(d[m + 1]))) ++m;
      if (m == l) break;
      ql_sweep(d, e.data(), l, m, rows, n);
    }
  }
  for (int64_t i = 0; i < n; ++i) d[i] *= scale;
}

}  // namespace lowrank
