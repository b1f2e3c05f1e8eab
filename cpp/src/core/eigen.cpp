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
constexpr int64_t kRowsPerTask = 64;      // rows of the matrix that one task updates
constexpr int64_t kSerialBelow = 128;     // fewer rows cost less than the threads' start
constexpr int64_t kRowsPerReflector = 8;  // they stay in L1
constexpr int kPatience = 10;             // sweeps that even what is rounding beside the largest entry takes part in
constexpr int64_t kTurnsPerRow = 64;      // rotations kept for each row of the matrix, before they are applied

// Replaces the trailing part of `a` by its tridiagonal form; row k of `a` keeps reflector k from column k + 1 on.
//
// Each step is A <- A - v wᵀ - w vᵀ with p = beta A v, w = p - (beta/2) (pᵀ v) v. The update of one step waits for the
// product of the next, so that the rows that are left are read and written once a step.
class Tridiagonalization {
 public:
  Tridiagonalization(double* a, int64_t n, double* diagonal, double* off, double* beta)
      : a_(a), n_(n), diagonal_(diagonal), off_(off), beta_(beta), w_(size_t(n), 0.0), product_(size_t(n)) {}

  void run() {
    const double* waiting = nullptr;  // the reflector whose update the rows below still lack
    for (int64_t k = 0; k + 1 < n_; ++k) {
      if (waiting) update(k, k, waiting);
      waiting = step(k, waiting);
    }
    if (waiting) update(n_ - 1, n_ - 1, waiting);
    diagonal_[n_ - 1] = row(n_ - 1)[n_ - 1];
  }

 private:
  double* row(int64_t i) const { return a_ + i * n_; }

  // Row i from column `from` on; `v` begins at the column that w_ is indexed by, too.
  void update(int64_t i, int64_t from, const double* v) {
    dense_level().axpy2(row(i) + from, -v[i], w_.data() + from, -w_[size_t(i)], v + from, n_ - from);
  }

  // Returns reflector k, indexed by column, or null where there is nothing to reflect.
  const double* step(int64_t k, const double* waiting) {
    const int64_t below = k + 1, size = n_ - below;
    double* v = row(k) + below;  // by symmetry the column below the diagonal, too
    const double first = v[0], norm = std::sqrt(vectors<double>().dot(v, v, size));
    diagonal_[k] = row(k)[k];
    const double beta = beta_[k] = make_reflector(v, size, kNegligible);
    off_[k] = beta == 0.0 ? first : -std::copysign(norm, first);
    const auto each = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (waiting) update(i, below, waiting);
        product_[size_t(i)] = beta * vectors<double>().dot(row(i) + below, v, size);
      }
    };
    if (size < kSerialBelow) {
      each(below, n_);
    } else {
      parallel_chunks(size, kRowsPerTask, [&](int64_t begin, int64_t end) { each(below + begin, below + end); });
    }
    if (beta == 0.0) return nullptr;
    std::swap(w_, product_);
    double* w = w_.data() + below;
    vectors<double>().axpy(w, -0.5 * beta * vectors<double>().dot(w, v, size), v, size);
    return row(k);
  }

  double* a_;
  int64_t n_;
  double *diagonal_, *off_, *beta_;
  std::vector<double> w_, product_;
};

// Row j of `rows` becomes column j of the product of the reflectors; several rows at a time share a reflector.
void accumulate(const double* a, int64_t n, const double* beta, double* rows) {
  parallel_chunks(n, kRowsPerReflector, [&](int64_t begin, int64_t end) {
    std::fill(rows + begin * n, rows + end * n, 0.0);
    for (int64_t j = begin; j < end; ++j) rows[j * n + j] = 1.0;
    for (int64_t k = std::min(end, n) - 2; k >= 0; --k) {
      if (beta[k] == 0.0) continue;
      for (int64_t j = std::max(begin, k + 1); j < end; ++j) {
        reflect(rows + j * n + k + 1, a + k * n + k + 1, beta[k], n - k - 1);
      }
    }
  });
}

// sqrt(f² + g²) of numbers that are not large, without squares that vanish.
double length(double f, double g) {
  const double square = f * f + g * g;
  return square > kNegligible ? std::sqrt(square) : std::hypot(f, g);
}

// One QL sweep on the unreduced block [l, m] of the tridiagonal matrix; its rotations are appended to `turns`.
void ql_sweep(double* d, double* e, int64_t l, int64_t m, std::vector<Rotation>& turns) {
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
    const double inverse = 1.0 / r;
    s = f * inverse;
    c = g * inverse;
    g = d[i + 1] - p;
    const double t = (d[i] - g) * s + 2.0 * c * b;
    p = s * t;
    d[i + 1] = g + p;
    g = c * t - b;
    turns.push_back({i, c, s});
  }
  d[l] -= p;
  e[l] = g;
  e[m] = 0.0;
}

// All rotations of many sweeps at once, on one strip of columns after the other, each in a buffer that stays near.
void apply(std::vector<Rotation>& turns, double* rows, int64_t n) {
  parallel_chunks(n, kStrip, [&](int64_t begin, int64_t end) {
    Buffer<double> strip(n * kStrip);
    for (int64_t i = 0; i < n; ++i) {
      std::fill(std::copy(rows + i * n + begin, rows + i * n + end, strip.data() + i * kStrip),
                strip.data() + (i + 1) * kStrip, 0.0);
    }
    dense_level().rotate_strip(strip.data(), turns.data(), int64_t(turns.size()));
    for (int64_t i = 0; i < n; ++i) {
      std::copy(strip.data() + i * kStrip, strip.data() + i * kStrip + (end - begin), rows + i * n + begin);
    }
  });
  turns.clear();
}

}  // namespace

void symmetric_eigenvectors(double* a, int64_t n, double* rows, double* d, int sweeps) {
  if (n == 0) return;
  const double scale = scale_of(row_major(a, n, n));
  for (int64_t i = 0; i < n * n; ++i) a[i] /= scale;
  std::vector<double> e(static_cast<size_t>(n), 0.0), beta(static_cast<size_t>(n), 0.0);
  Tridiagonalization(a, n, d, e.data(), beta.data()).run();
  accumulate(a, n, beta.data(), rows);
  // Small entries beside large ones usually converge to their own size. Where sweeps keep carrying the rounding of the
  // large ones into them, that rounding is what there is.
  double largest = 0.0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(d[i]) + 2.0 * std::abs(e[size_t(i)]));
  std::vector<Rotation> turns;
  for (int64_t l = 0; l < n; ++l) {
    for (int sweep = 0;; ++sweep) {
      const double floor = sweep < kPatience ? 0.0 : double(n) * largest;
      const auto splits = [&](int64_t i) {
        return !(std::abs(e[size_t(i)]) > 0x1p-53 * std::max(floor, std::abs(d[i]) + std::abs(d[i + 1])));  // NaN, too
      };
      int64_t m = l;
      while (m + 1 < n && !splits(m)) ++m;
      if (m == l) break;
      if (sweep == sweeps) throw NotConverged("symmetric_eigenvectors: an eigenvalue did not converge");
      ql_sweep(d, e.data(), l, m, turns);
      if (int64_t(turns.size()) >= kTurnsPerRow * n) apply(turns, rows, n);
    }
  }
  apply(turns, rows, n);
  for (int64_t i = 0; i < n; ++i) d[i] *= scale;
}

}  // namespace lowrank
