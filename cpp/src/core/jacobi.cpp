// One-sided Jacobi SVD of a small square matrix, preconditioned by the eigenvectors of its Gram matrix.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "lowrank_core/dense.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/parallel.h"

namespace lowrank {
namespace {

constexpr double kUnit = 0x1p-53;
constexpr int kPatience = 2;           // sweeps that even a column of rounding size takes part in
constexpr int64_t kPairsPerTask = 32;  // pairs of columns that one task looks at
constexpr int64_t kSerialBelow = 64;   // smaller problems cost less than the threads' start

// Row i of `columns` is COLUMN i of the matrix that it stands for: every column operation runs along memory.
struct Columns {
  double* data;
  int64_t n;
  double* operator[](int64_t i) const { return data + i * n; }
};

double square(double x) { return x * x; }

// Makes columns i and j of x orthogonal by a plane rotation, applied to v as well, and keeps their squared norms.
// False if they were orthogonal to `tol` already, or one is no longer than the square root of `noise2`: such a column
// is rounding, whose direction is replaced in the end, and turning it again and again would wear v out.
bool orthogonalize_pair(const Columns& x, const Columns& v, double* norm2, int64_t i, int64_t j, double tol,
                        double noise2) {
  const int64_t n = x.n;
  if (std::min(norm2[i], norm2[j]) <= noise2) return false;
  const DenseLevel& level = dense_level();
  const double aij = level.vectors.twofold.dot(x[i], x[j], n);
  if (are_orthogonal(aij, norm2[i], norm2[j], tol)) return false;
  const Rotation turn = jacobi_rotation(aij, norm2[i], norm2[j]);
  level.rotate(x[i], x[j], turn.c, turn.s, n);
  level.rotate(v[i], v[j], turn.c, turn.s, n);
  norm2[i] = level.vectors.twofold.dot(x[i], x[i], n);
  norm2[j] = level.vectors.twofold.dot(x[j], x[j], n);
  return true;
}

// Rotates until every pair of columns is orthogonal to `tol`; throws NotConverged after `sweeps`. The pairs of a round
// share no column, so they may run at the same time without changing a bit of the result.
void jacobi_sweeps(const Columns& x, const Columns& v, double* norm2, double tol, int sweeps) {
  const int64_t n = x.n, players = n + n % 2, pairs = players / 2;
  for (int64_t j = 0; j < n; ++j) norm2[j] = vectors<double>().dot(x[j], x[j], n);
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    // Graded columns converge at once, whatever their length; those of rounding never do, and are let go of. A quarter
    // of the length below which jacobi_svd replaces a column: whatever stays has been made orthogonal.
    const double largest2 = *std::max_element(norm2, norm2 + n);
    const double noise2 = sweep < kPatience ? 0.0 : square(0.25 * double(n) * kUnit) * largest2;
    std::atomic<bool> rotated{false};
    for (int64_t round = 0; round + 1 < players; ++round) {
      parallel_chunks(pairs, n < kSerialBelow ? pairs : kPairsPerTask, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          const auto [i, j] = opponents(p, round, players);
          if (j < n && orthogonalize_pair(x, v, norm2, i, j, tol, noise2))
            rotated.store(true, std::memory_order_relaxed);
        }
      });
    }
    if (!rotated.load()) return;
  }
  throw NotConverged("jacobi_svd: the columns did not become orthogonal");
}

// Replaces columns from `first` on by unit vectors orthogonal to all before them.
void complete_basis(const Columns& x, int64_t first) {
  const VectorFunctions<double>& vector = vectors<double>();
  const int64_t n = x.n;
  int64_t axis = 0;
  for (int64_t j = first; j < n; ++j) {
    double norm2 = 0.0;
    while (norm2 < 0.5 / double(n)) {  // some axis keeps at least (n - j) / n of its squared length
      std::fill(x[j], x[j] + n, 0.0);
      x[j][axis++ % n] = 1.0;
      for (int pass = 0; pass < 2; ++pass) {
        for (int64_t k = 0; k < j; ++k) vector.axpy(x[j], -vector.dot(x[k], x[j], n), x[k], n);
      }
      norm2 = vector.dot(x[j], x[j], n);
    }
    const double inverse = 1.0 / std::sqrt(norm2);
    for (int64_t i = 0; i < n; ++i) x[j][i] *= inverse;
  }
}

}  // namespace

void jacobi_svd(double* a, int64_t n, double* u, double* s, double* vt, double tol, int sweeps) {
  if (n == 0) return;
  const double scale = scale_of(row_major(a, n, n));
  for (int64_t i = 0; i < n * n; ++i) a[i] /= scale;
  const Matrix matrix = row_major(a, n, n);
  MatrixBuffer<double> g(n, n), left(n, n), right(n, n);
  gram(g.view(), matrix);
  Buffer<double> norm2(n);
  symmetric_eigenvectors(g.data(), n, right.data(), norm2.data());
  gemm(left.view(), right.view(), matrix.transposed());  // rows of `left`: columns of a V
  const Columns x{left.data(), n}, v{right.data(), n};
  jacobi_sweeps(x, v, norm2.data(), std::max(tol, double(n) * kUnit), sweeps);

  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return norm2[i] > norm2[j]; });

  // A column below n units of the largest is rounding noise: its direction is replaced, its size is kept.
  const double floor = double(n) * kUnit * std::sqrt(norm2[order[0]]);
  MatrixBuffer<double> sorted(n, n);
  int64_t sound = 0;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t from = order[size_t(j)];
    const double size = std::sqrt(norm2[from]);
    if (size > floor) ++sound;
    for (int64_t i = 0; i < n; ++i) sorted.at(j, i) = size > floor ? x[from][i] / size : 0.0;
    std::copy(v[from], v[from] + n, vt + j * n);
    s[j] = size * scale;
  }
  complete_basis({sorted.data(), n}, sound);
  copy(row_major(u, n, n), sorted.view().transposed());
}

}  // namespace lowrank
