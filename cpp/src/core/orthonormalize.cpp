#include "lowrank_core/orthonormalize.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lowrank_core/dense.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/parallel.h"

namespace lowrank {
namespace {

// Smallest squared sine between a column and the span of those before it that Cholesky QR accepts, in units of n
// float64 round-offs. The factor 100 leaves the first pass an orthogonality error below 1 % (kappa^2 u), which
// the second pass repairs.
constexpr double kPivotFloor = 100.0 * 0x1p-53;
constexpr int kPassLimit = 5;
// Sum of the cosines beside one column: the Gram matrix is then well conditioned, and Cholesky QR as good as exact.
// What a pass removes from nearly orthogonal columns, or from columns nearly orthogonal to others, leaves rounding.
constexpr double kNearlyOrthogonal = 0.5;
// Iterations of Newton-Schulz: a singular value grows by 3/2 in each, so these reach what is above the rounding of the
// largest one and no further.
template <class T>
constexpr int kNewtonSchulzLimit = sizeof(T) == 4 ? 38 : 84;

// Whether the inverse of a column's norm, and what Cholesky QR multiplies it by, keep all their digits in T, and its
// square in float64.
template <class T>
bool invertible(double norm) {
  constexpr int exponent = sizeof(T) == 4 ? 100 : 400;
  return norm > std::ldexp(1.0, -exponent) && norm < std::ldexp(1.0, exponent);
}

// Divides every column by a power of two that brings its largest entry near 1; its direction stays, to the bit. False,
// with y left alone, where all were of moderate size.
template <class T>
bool equalize(MatrixBuffer<T>& y) {
  std::vector<double> scale = column_magnitudes(y.view());
  if (std::all_of(scale.begin(), scale.end(), is_moderate<T>)) return false;
  for (double& largest : scale) largest = scale_of(largest);
  for (int64_t i = 0; i < y.rows(); ++i) {
    for (int64_t j = 0; j < y.cols(); ++j) y.at(i, j) = T(double(y.at(i, j)) / scale[size_t(j)]);
  }
  return true;
}

// y <- y M.
template <class T>
void multiply_right(MatrixBuffer<T>& y, MatrixBuffer<T>& spare, const double* m) {
  const int64_t n = y.cols();
  MatrixBuffer<T> factor(n, n);
  for (int64_t i = 0; i < n * n; ++i) factor[i] = T(m[i]);
  spare.reshape(y.rows(), n);
  gemm(spare.view(), y.view(), factor.view());
  std::swap(y, spare);
}

// One pass y <- y R⁻¹ with the Cholesky factor of the Gram matrix of unit columns. Returns the largest cosine between
// two columns before the pass, or infinity where it breaks down; then y is left alone.
template <class T>
double moderate_cholesky_qr(MatrixBuffer<T>& y, MatrixBuffer<T>& spare) {
  constexpr double failed = std::numeric_limits<double>::infinity();
  const int64_t n = y.cols();
  MatrixBuffer<double> g(n, n);
  gram(g.view(), y.view());
  std::vector<double> scale(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) {
    const double norm = std::sqrt(g.at(j, j));
    if (!invertible<T>(norm)) return failed;
    scale[size_t(j)] = 1.0 / norm;
  }
  double cosine = 0.0;
  for (int64_t i = 0; i < n; ++i) {  // the upper triangle, which is all that is read
    for (int64_t j = i; j < n; ++j) g.at(i, j) *= scale[size_t(i)] * scale[size_t(j)];
    for (int64_t j = i + 1; j < n; ++j) cosine = std::max(cosine, std::abs(g.at(i, j)));
  }
  if (!cholesky_upper(g.data(), n, kPivotFloor * double(n))) return failed;
  invert_upper(g.data(), n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) g.at(i, j) *= scale[size_t(i)];
  }
  multiply_right(y, spare, g.data());
  return cosine;
}

// The same for columns of any size; where it breaks down, y may have been equalized.
template <class T>
double cholesky_qr(MatrixBuffer<T>& y, MatrixBuffer<T>& spare) {
  const double cosine = moderate_cholesky_qr(y, spare);
  return std::isinf(cosine) && equalize(y) ? moderate_cholesky_qr(y, spare) : cosine;
}

// Passes until one has started from nearly orthogonal columns: what that one leaves is rounding. Two are usual. False,
// with y as the last pass left it, where a pass breaks down.
template <class T>
bool cholesky_qr2(MatrixBuffer<T>& y, MatrixBuffer<T>& spare) {
  for (int pass = 0; pass < kPassLimit; ++pass) {
    const double cosine = cholesky_qr(y, spare);
    if (std::isinf(cosine)) return false;
    if (cosine * double(y.cols()) <= kNearlyOrthogonal) return true;
  }
  return false;
}

// x <- x / ‖x‖, without overflow on the way; a zero or non-finite column stays.
template <class T>
void normalize(T* x, int64_t n) {
  const double scale = scale_of(row_major(x, 1, n));
  for (int64_t i = 0; i < n; ++i) x[i] = T(double(x[i]) / scale);
  const double norm = std::sqrt(vectors<T>().dot(x, x, n));
  if (norm == 0.0 || !std::isfinite(norm)) return;
  for (int64_t i = 0; i < n; ++i) x[i] = T(double(x[i]) / norm);
}

// Householder QR of the unit columns of y with a positive diagonal of R, as Cholesky's. The columns are stored as rows
// so that every reflection runs along memory. What is left of a column that depends on those before it is rounding: it
// is not reflected, and an arbitrary orthogonal direction takes its place.
template <class T>
void householder(MatrixBuffer<T>& y, MatrixBuffer<T>& spare) {
  const int64_t m = y.rows(), n = y.cols();
  const double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53, dependent = 16.0 * unit * std::sqrt(double(n));
  spare.reshape(n, m);
  copy(spare.view().transposed(), y.view());
  parallel_for(n, [&](int64_t k) { normalize(spare.row(k), m); });
  std::vector<double> beta(static_cast<size_t>(n));
  std::vector<T> sign(static_cast<size_t>(n), T(1));
  for (int64_t k = 0; k < n; ++k) {
    T* v = spare.row(k) + k;
    const bool negative = std::signbit(v[0]);  // a reflector maps onto the axis, away from the column
    beta[size_t(k)] = make_reflector(v, m - k, dependent);
    if (!negative && beta[size_t(k)] != 0.0) sign[size_t(k)] = T(-1);
    parallel_for(n - k - 1, [&](int64_t j) { reflect(spare.row(k + 1 + j) + k, v, beta[size_t(k)], m - k); });
  }
  y.reshape(n, m);
  parallel_for(n, [&](int64_t j) {
    T* q = y.row(j);
    std::fill(q, q + m, T(0));
    q[j] = sign[size_t(j)];
    for (int64_t k = j; k >= 0; --k) reflect(q + k, spare.row(k) + k, beta[size_t(k)], m - k);
  });
  spare.reshape(m, n);
  copy(spare.view(), y.view().transposed());
  std::swap(y, spare);
}

// Householder QR of [z, y]: its last columns are orthogonal to z whatever y is.
template <class T>
void householder_beside(MatrixBuffer<T>& y, const Matrix& z) {
  const int64_t m = y.rows(), l = z.cols, k = y.cols();
  MatrixBuffer<T> both(m, l + k), spare(m, l + k);
  copy(both.view().block(0, 0, m, l), z);
  copy(both.view().block(0, l, m, k), y.view());
  householder(both, spare);
  copy(y.view(), both.view().block(0, l, m, k));
}

// X <- X (3 I - XᵀX) / 2 drives every singular value in (0, sqrt 3) to 1. Source: Björck & Bowie, "An iterative
// algorithm for computing the best estimate of an orthogonal matrix", SIAM J. Numer. Anal. 8 (1971), eq. 3.
// Every entry is divided by the same power of two first, where squares or their inverses would not fit.
template <class T>
bool newton_schulz(MatrixBuffer<T>& y, MatrixBuffer<T>& spare) {
  const int64_t n = y.cols();
  const double power = scale_of(y.view());
  if (!is_moderate<T>(power)) copy_divided(y.view(), y.view(), power);
  const double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  const double tol = 4.0 * unit * std::sqrt(double(y.rows()));
  MatrixBuffer<double> g(n, n);
  double scale = 0.0;
  for (int iteration = 0; iteration < kNewtonSchulzLimit<T>; ++iteration) {
    gram(g.view(), y.view());
    if (iteration == 0) {  // the largest row sum bounds the largest eigenvalue of the Gram matrix
      for (int64_t i = 0; i < n; ++i) {
        double sum = 0.0;
        for (int64_t j = 0; j < n; ++j) sum += std::abs(g.at(i, j));
        scale = std::max(scale, sum);
      }
      if (!(scale > 0.0) || !std::isfinite(scale)) return false;
      for (int64_t i = 0; i < n * n; ++i) g[i] /= scale;
    }
    double defect = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) defect = std::max(defect, std::abs(g.at(i, j) - (i == j ? 1.0 : 0.0)));
    }
    if (iteration > 0 && defect <= tol) return true;
    const double size = iteration == 0 ? 1.0 / std::sqrt(scale) : 1.0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) g.at(i, j) = size * ((i == j ? 1.5 : 0.0) - 0.5 * g.at(i, j));
    }
    multiply_right(y, spare, g.data());
  }
  return false;
}

}  // namespace

template <class T>
void orthonormalize(MatrixBuffer<T>& y, MatrixBuffer<T>& spare, OrthPasses passes) {
  if (y.size() == 0 || y.cols() == 0) return;
  const bool sound = passes == OrthPasses::kOne ? !std::isinf(cholesky_qr(y, spare)) : cholesky_qr2(y, spare);
  if (!sound) householder(y, spare);
}

template <class T>
void orthonormalize_beside(MatrixBuffer<T>& y, const Matrix& z, MatrixBuffer<T>& spare) {
  if (y.size() == 0) return;
  MatrixBuffer<T> inner(z.cols, y.cols());
  // Two passes are usual; one more where what the first one left beside z was mostly rounding.
  for (int pass = 0; pass < kPassLimit; ++pass) {
    gemm(inner.view(), z.transposed(), y.view());
    const double overlap = pass == 0 ? 1.0 : largest_magnitude(inner.view());
    gemm(y.view(), z, inner.view(), {.alpha = -1.0, .beta = 1.0});
    const double cosine = cholesky_qr(y, spare);
    if (std::isinf(cosine)) break;
    if (std::max(overlap, cosine) * double(y.cols()) <= kNearlyOrthogonal) return;
  }
  householder_beside(y, z);
}

template <class T>
bool orthonormalize_by(OrthMethod method, MatrixBuffer<T>& y, MatrixBuffer<T>& spare) {
  if (y.cols() == 0) return true;
  switch (method) {
    case OrthMethod::kCholQR2:
      return cholesky_qr2(y, spare);
    case OrthMethod::kNewtonSchulz:
      return newton_schulz(y, spare);
    case OrthMethod::kHouseholder:
      householder(y, spare);
      return true;
    case OrthMethod::kAuto:
      orthonormalize(y, spare);
      return true;
  }
  return false;
}

template void orthonormalize<float>(MatrixBuffer<float>&, MatrixBuffer<float>&, OrthPasses);
template void orthonormalize<double>(MatrixBuffer<double>&, MatrixBuffer<double>&, OrthPasses);
template void orthonormalize_beside<float>(MatrixBuffer<float>&, const Matrix&, MatrixBuffer<float>&);
template void orthonormalize_beside<double>(MatrixBuffer<double>&, const Matrix&, MatrixBuffer<double>&);
template bool orthonormalize_by<float>(OrthMethod, MatrixBuffer<float>&, MatrixBuffer<float>&);
template bool orthonormalize_by<double>(OrthMethod, MatrixBuffer<double>&, MatrixBuffer<double>&);

}  // namespace lowrank
