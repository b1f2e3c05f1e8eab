// Adafactor with a sketched momentum.
#include "lowrank_core/subspace_step_sketched.h"

#include <limits>
#include <utility>

#include "lowrank_core/buffer.h"
#include "lowrank_core/dense.h"
#include "subspace_step/job.h"

namespace lowrank::subspace_step {
namespace {

constexpr int64_t kLines = 64;  // of a gradient that one task reads

// Numbers of the rows and of the columns of a gradient.
struct Margins {
  std::vector<double> rows, cols;
};

// The gradient as the user sees it. Its rows are what is summed along, whatever its strides: one order for every
// layout.
Matrix as_seen(const SketchJob& job) { return job.transposed ? job.g.transposed() : job.g; }

int64_t parts_of(const Matrix& x) { return (x.rows + kLines - 1) / kLines; }

// Calls body(number, first row, part) for runs of rows.
template <class Body>
void for_each_part(const Matrix& x, const Body& body) {
  parallel_chunks(x.rows, kLines, [&](int64_t begin, int64_t end) {
    body(begin / kLines, begin, x.block(begin, 0, end - begin, x.cols));
  });
}

// Sums of squares.
Margins squares_of(const Matrix& x) {
  Margins sums{std::vector<double>(size_t(x.rows)), std::vector<double>(size_t(x.cols))};
  std::vector<double> partial(size_t(parts_of(x) * x.cols));
  for_each_part(x, [&](int64_t number, int64_t row, const Matrix& part) {
    weight_level().add_squares(sums.rows.data() + row, partial.data() + number * x.cols, part);
  });
  for (int64_t number = 0; number < parts_of(x); ++number) {
    for (int64_t j = 0; j < x.cols; ++j) sums.cols[size_t(j)] += partial[size_t(number * x.cols + j)];
  }
  return sums;
}

// Sum of rows[i]² cols[j]² x_ij².
double scaled_square(const Matrix& x, const Margins& factors) {
  Margins squared = factors;
  for (double& factor : squared.rows) factor *= factor;
  for (double& factor : squared.cols) factor *= factor;
  std::vector<double> sums(size_t(parts_of(x)));
  for_each_part(x, [&](int64_t number, int64_t row, const Matrix& part) {
    sums[size_t(number)] = weight_level().weighted_squares(squared.rows.data() + row, squared.cols.data(), part);
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

// Moves the means of lines of `length` entries. Returns 1 over their roots, of their shares in their mean if `shares`.
std::vector<double> moved_over_roots(float* means, const std::vector<double>& squares, int64_t length,
                                     const SketchJob& job, double eps, bool shares) {
  constexpr double tiny = double(std::numeric_limits<float>::min()), most = double(std::numeric_limits<float>::max());
  std::vector<double> roots(squares.size());
  double total = 0.0;
  for (size_t i = 0; i < roots.size(); ++i) {
    means[i] = float(std::min(moved_mean(double(means[i]), job.decay, squares[i], double(length), eps), most));
    total += double(means[i]);
  }
  const double mean = shares ? std::max(total / double(roots.size()), tiny) : 1.0;
  for (size_t i = 0; i < roots.size(); ++i) roots[i] = over_root(double(means[i]) / mean, root(tiny));
  return roots;
}

// The factors of the rows and columns of `x`, the gradient as seen; Adafactor's means move.
Margins normalization(const SketchJob& job, const Matrix& x, double eps) {
  const Margins squares = squares_of(x);
  return {moved_over_roots(job.row_means, squares.rows, x.cols, job, eps, true),
          moved_over_roots(job.col_means, squares.cols, x.rows, job, eps, false)};
}

template <class T>
Buffer<T> rounded(const std::vector<double>& values, double factor) {
  Buffer<T> to(int64_t(values.size()));
  for (size_t i = 0; i < values.size(); ++i) to[int64_t(i)] = T(factor * values[i]);
  return to;
}

// x <- diag(rows) x diag(cols), without those that are null
template <class T>
void scale(const Matrix& x, const T* rows, const T* cols) {
  const bool by_columns = runs_along_columns(x);
  const Matrix lines = by_columns ? x.transposed() : x;
  const T* const across = by_columns ? cols : rows;
  const T* const along = by_columns ? rows : cols;
  parallel_chunks(lines.rows, std::max<int64_t>(1, kChunk / lines.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* const line = lines.as<T>() + i * lines.row_stride;
      for (int64_t j = 0; across && j < lines.cols; ++j) line[j] *= across[i];
      for (int64_t j = 0; along && j < lines.cols; ++j) line[j] *= along[j];
    }
  });
}

// |P D|² = <Pᵀ P, D Dᵀ>
template <class T>
double lifted_square(const Matrix& basis, const Matrix& direction) {
  MatrixBuffer<T> of_basis(basis.cols, basis.cols), of_direction(basis.cols, basis.cols);
  gram(of_basis.view(), basis);
  gram(of_direction.view(), direction.transposed());
  return vectors<T>().dot(of_basis.data(), of_direction.data(), of_basis.size());
}

// low <- Pᵀ x
template <class T>
void sketch(const SketchJob& job, const Params& p, const T* rows, const T* cols) {
  MatrixBuffer<T> basis(job.basis.rows, job.basis.cols);
  copy(basis.view(), job.basis);
  scale<T>(basis.view(), rows, nullptr);
  gemm(job.low, basis.view().transposed(), job.g, {.alpha = p.maximize ? -1.0 : 1.0, .math = p.math});
  scale<T>(job.low, nullptr, cols);
}

template <class T>
void step(const SketchJob& job, const SketchParams& params) {
  const Params& p = params.step;
  const double rest = 1.0 - p.beta1;
  const Matrix seen = as_seen(job);
  Margins factors = normalization(job, seen, p.eps);
  const double normalized = scaled_square(seen, factors);
  if (job.transposed) std::swap(factors.rows, factors.cols);
  const Buffer<T> rows = rounded<T>(factors.rows, 1.0);
  sketch<T>(job, p, rows.data(), rounded<T>(factors.cols, 1.0).data());
  Buffer<T> memory(size_of(job.low));
  std::copy(job.low.as<T>(), job.low.as<T>() + memory.size(), memory.data());
  Matrix before = job.low;
  before.data = memory.data();
  advance(job, p, before);
  const double both = vectors<T>().dot(job.low.as<T>(), memory.data(), memory.size());
  const double squared = joined_square(rest, normalized, both, lifted_square<T>(job.basis, before));
  ScaledWriteBack product{plain_write_back(job, p, before), gradient_of(job, p)};
  product.step = p.lr / clip_divisor(squared, double(size_of(job.g)), params.threshold);
  const Buffer<T> gains = rounded<T>(factors.cols, product.step * rest);
  product.row_gains = rows.data();
  product.col_gains = gains.data();
  weight_level().write_back_scaled(along_memory(product));
}

}  // namespace

void sketched_cpu(const std::vector<SketchJob>& jobs, const SketchParams& params) {
  for_each_job(jobs, [&](const SketchJob& job) {
    if (job.w.empty() || job.low.empty()) return;
    job.low.dtype == DType::kFloat64 ? step<double>(job, params) : step<float>(job, params);
  });
}

}  // namespace lowrank::subspace_step
