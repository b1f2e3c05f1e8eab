// Adafactor with a sketched momentum.
#include "lowrank_core/subspace_step_sketched.h"

#include <limits>
#include <numeric>
#include <utility>

#include "subspace_step/scaling.h"

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

// Moves `kept`, a mean over a line of `length` entries, by the sum of its squares. T: what it is stored in.
template <class T>
T moved(T kept, double squares, double length, double decay, double eps) {
  return T(std::min(moved_mean(double(kept), decay, squares, length, eps), double(std::numeric_limits<T>::max())));
}

// 1 over the roots of means, of their shares in their mean if `shares`.
template <class T>
std::vector<double> over_roots(const T* means, size_t count, bool shares) {
  constexpr double tiny = double(std::numeric_limits<T>::min());
  const double total = std::accumulate(means, means + count, 0.0);
  const double mean = shares ? std::max(total / double(count), tiny) : 1.0;
  std::vector<double> roots(count);
  for (size_t i = 0; i < count; ++i) roots[i] = over_root(double(means[i]) / mean, root(tiny));
  return roots;
}

// The factors of the rows and columns of `x`, by the means of its squares, which move.
template <class T>
Margins normalization(const Matrix& x, T* row_means, T* col_means, double decay, double eps) {
  const Margins squares = squares_of(x);
  for (int64_t i = 0; i < x.rows; ++i) {
    row_means[i] = moved(row_means[i], squares.rows[size_t(i)], double(x.cols), decay, eps);
  }
  for (int64_t j = 0; j < x.cols; ++j) {
    col_means[j] = moved(col_means[j], squares.cols[size_t(j)], double(x.rows), decay, eps);
  }
  return {over_roots(row_means, squares.rows.size(), true), over_roots(col_means, squares.cols.size(), false)};
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
  Margins factors = normalization(seen, job.row_means, job.col_means, job.decay, p.eps);
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

// The numbers of a moment that is stored in any way, held in T while they change.
template <class T>
class Opened {
 public:
  Opened(const Moment& moment, int64_t size, uint64_t seed, int64_t step)
      : moment_(moment), size_(size), seed_(seed), step_(step), copy_(in_place() ? 0 : size) {
    if (!in_place()) read();
  }

  T* values() { return in_place() ? static_cast<T*>(moment_.values) : copy_.data(); }

  void close() {
    if (!in_place()) write();
  }

 private:
  bool in_place() const { return moment_.storage == Storage::kWork; }
  void read() {
    if constexpr (std::is_same_v<T, float>) decode_cpu(copy_.data(), moment_, size_, true);
  }
  void write() {
    if constexpr (std::is_same_v<T, float>) encode_cpu(moment_, copy_.data(), size_, true, seed_, step_);
  }

  const Moment moment_;
  const int64_t size_;
  const uint64_t seed_;
  const int64_t step_;
  Buffer<T> copy_;
};

template <class T>
void factored(const FactoredJob& job, double eps, double threshold) {
  const Matrix& x = job.low;
  Opened<T> rows(job.rows, x.rows, job.seed, job.step), cols(job.cols, x.cols, job.seed, job.step);
  const Margins factors = normalization(x, rows.values(), cols.values(), job.decay, eps);
  rows.close();
  cols.close();
  const double by = 1.0 / clip_divisor(scaled_square(x, factors), double(size_of(x)), threshold);
  scale<T>(x, rounded<T>(factors.rows, by).data(), rounded<T>(factors.cols, 1.0).data());
}

}  // namespace

void factored_cpu(const std::vector<FactoredJob>& jobs, double eps, double threshold) {
  parallel_for(int64_t(jobs.size()), [&](int64_t i) {
    const FactoredJob& job = jobs[size_t(i)];
    if (job.low.empty()) return;
    job.low.dtype == DType::kFloat64 ? factored<double>(job, eps, threshold) : factored<float>(job, eps, threshold);
  });
}

void sketched_cpu(const std::vector<SketchJob>& jobs, const SketchParams& params) {
  for_each_job(jobs, [&](const SketchJob& job) {
    if (job.w.empty() || job.low.empty()) return;
    job.low.dtype == DType::kFloat64 ? step<double>(job, params) : step<float>(job, params);
  });
}

}  // namespace lowrank::subspace_step
