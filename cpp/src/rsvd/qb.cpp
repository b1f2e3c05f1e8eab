// randQB_EI: the basis grows block by block, and the energy left is followed without ever forming the residual, by
// the identity ||A - Q B||² = ||A||² - ||B||² for orthonormal Q and B = Qᵀ A.
#include <algorithm>
#include <cmath>
#include <vector>

#include "lowrank_core/dense.h"
#include "lowrank_core/rsvd.h"
#include "rsvd/parts.h"

namespace lowrank::rsvd {
namespace {

// Share of the energy below which the difference of two norms is rounding: 4 u / 10 %, from the relative accuracy of
// the difference (specification of randQB_EI's indicator).
template <class T>
constexpr double kResolution = 40.0 * (sizeof(T) == 4 ? 0x1p-24 : 0x1p-53);

template <class T>
class Growth {
 public:
  Growth(const Matrix& q, const Matrix& b, const Matrix& a) : q_(q), b_(b), a_(a) {}

  int64_t rank() const { return rank_; }
  Matrix basis() const { return q_.block(0, 0, q_.rows, rank_); }
  Matrix coefficients() const { return b_.block(0, 0, rank_, b_.cols); }

  // Adds `width` directions; returns the energy that they capture.
  double grow(int64_t width, int64_t niter, uint64_t seed, uint32_t step) {
    const int64_t m = a_.rows, n = a_.cols, longest = std::max(m, n);
    MatrixBuffer<T> y(longest, width), z(longest, width), spare(longest, width);
    y.reshape(m, width);
    z.reshape(n, width);
    draw_sketch(z.data(), n, width, seed, step);
    residual_times(y.view(), z.view());
    orthonormalize(y, spare, OrthPasses::kOne);
    for (int64_t i = 0; i < niter; ++i) {
      z.reshape(n, width);
      residual_transposed_times(z.view(), y.view());
      orthonormalize(z, spare, OrthPasses::kOne);
      y.reshape(m, width);
      residual_times(y.view(), z.view());
      orthonormalize(y, spare, OrthPasses::kOne);
    }
    orthonormalize_beside(y, basis(), spare);
    const Matrix rows = b_.block(rank_, 0, width, n);
    residual_transposed_times(rows.transposed(), y.view());
    copy(q_.block(0, rank_, m, width), y.view());
    rank_ += width;
    return squared_norm(rows);
  }

 private:
  // y <- (A - Q B) z
  void residual_times(const Matrix& y, const Matrix& z) const {
    gemm(y, a_, z);
    if (rank_ == 0) return;
    MatrixBuffer<T> inner(rank_, z.cols);
    gemm(inner.view(), coefficients(), z);
    gemm(y, basis(), inner.view(), {.alpha = -1.0, .beta = 1.0});
  }

  // z <- (A - Q B)ᵀ y
  void residual_transposed_times(const Matrix& z, const Matrix& y) const {
    gemm(z, a_.transposed(), y);
    if (rank_ == 0) return;
    MatrixBuffer<T> inner(rank_, y.cols);
    gemm(inner.view(), basis().transposed(), y);
    gemm(z, coefficients().transposed(), inner.view(), {.alpha = -1.0, .beta = 1.0});
  }

  Matrix q_, b_, a_;
  int64_t rank_ = 0;
};

// Rotates Q B so that the rows of B are orthogonal and descend in length, then keeps the fewest that leave
// `enough` of the energy or less.
template <class T>
QbResult truncate(const Growth<T>& grown, double enough, double total) {
  const int64_t n = grown.coefficients().cols, l = grown.rank();
  MatrixBuffer<T> bt(n, l), rotated(grown.basis().rows, l);
  copy(bt.view(), grown.coefficients().transposed());
  SmallSvd svd = small_svd(bt);
  rotate_basis<T>(rotated.view(), grown.basis(), svd.left);
  copy(grown.basis(), rotated.view());
  for (int64_t j = 0; j < l; ++j) {
    for (int64_t i = 0; i < l; ++i) svd.right.at(i, j) *= svd.s[j];
  }
  rotate_basis<T>(grown.coefficients().transposed(), bt.view(), svd.right);
  double captured = 0.0;
  int64_t rank = 0;
  while (rank < l && total - captured > enough) {
    captured += svd.s[rank] * svd.s[rank];
    ++rank;
  }
  return {rank, std::min(1.0, captured / total)};
}

template <class T>
QbResult decompose(const Matrix& q, const Matrix& b, const Matrix& a, double energy, int64_t block, int64_t niter,
                   uint64_t seed);

// The same for a matrix of very small or very large numbers, by way of a copy whose largest is near 1.
template <class T>
QbResult decompose_scaled(const Matrix& q, const Matrix& b, const Matrix& a, double energy, int64_t block,
                          int64_t niter, uint64_t seed) {
  const double largest = largest_magnitude(a);
  check_finite(largest);
  if (largest == 0.0) return {0, 1.0};
  Scaled<T> scaled(a, std::ilogb(largest));
  const QbResult result = decompose<T>(q, b, scaled.values.view(), energy, block, niter, seed);
  for (int64_t i = 0; i < result.rank; ++i) multiply_all(b.as<T>() + i * b.row_stride, 1, b.cols, scaled.exponent);
  return result;
}

template <class T>
QbResult decompose(const Matrix& q, const Matrix& b, const Matrix& a, double energy, int64_t block, int64_t niter,
                   uint64_t seed) {
  const double total = squared_norm(a);
  if (!is_moderate<T>(std::sqrt(total))) return decompose_scaled<T>(q, b, a, energy, block, niter, seed);
  const double enough = std::max(1.0 - energy, kResolution<T>) * total;
  Growth<T> growth(q, b, a);
  double left = total;
  for (uint32_t step = 0; left > enough && growth.rank() < q.cols; ++step) {
    left -= growth.grow(std::min(block, q.cols - growth.rank()), niter, seed, step);
  }
  return truncate(growth, enough, total);
}

}  // namespace

std::vector<QbResult> qb_cpu(const std::vector<QbJob>& jobs, double energy, int64_t block, int64_t niter) {
  std::vector<QbResult> results(jobs.size());
  for_each_job(jobs, [&](size_t i) {
    const QbJob& job = jobs[i];
    const auto run = job.a.dtype == DType::kFloat64 ? decompose<double> : decompose<float>;
    results[i] = run(job.q, job.b, job.a, energy, block, niter, job.seed);
  });
  return results;
}

}  // namespace lowrank::rsvd
