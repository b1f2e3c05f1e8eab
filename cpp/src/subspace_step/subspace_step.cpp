#include "lowrank_core/subspace_step.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "lowrank_core/buffer.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/parallel.h"
#include "subspace_step/scaling.h"

namespace lowrank::subspace_step {
namespace {

constexpr int64_t kColumns = 128;  // of which one task takes the norms

bool finite(const Matrix& low) {
  std::atomic<bool> sound{true};
  parallel_chunks(size_of(low), kChunk, [&](int64_t begin, int64_t end) {
    const char* from = low.as<char>() + begin * item_size(low.dtype);
    if (!moment_level().finite(from, low.dtype, end - begin)) sound = false;
  });
  return sound;
}

// Squares of the columns of `x`, summed.
std::vector<double> column_squares(const Matrix& x) {
  std::vector<double> sums(size_t(x.cols));
  parallel_chunks(x.cols, kColumns, [&](int64_t begin, int64_t end) {
    weight_level().add_column_squares(sums.data() + begin, x.block(0, begin, x.rows, end - begin));
  });
  return sums;
}

double total(const std::vector<double>& x) { return std::accumulate(x.begin(), x.end(), 0.0); }

// Sum of factors[j]² x[j].
double weighted(const std::vector<double>& factors, const std::vector<double>& x) {
  double sum = 0.0;
  for (size_t j = 0; j < x.size(); ++j) sum += factors[j] * factors[j] * x[j];
  return sum;
}

// The lower one of the two in the middle of what is above 0, or 0.
double median_above_zero(std::vector<double> x) {
  x.erase(std::remove_if(x.begin(), x.end(), [](double value) { return !(value > 0.0); }), x.end());
  if (x.empty()) return 0.0;
  const auto middle = x.begin() + std::ptrdiff_t(x.size() - 1) / 2;
  std::nth_element(x.begin(), middle, x.end());
  return *middle;
}

// phi_j of each channel from the squared norms of N_j and R_j, times the scale of what takes the place of P N.
std::vector<double> channel_gains(const Params& p, const std::vector<double>& n, const std::vector<double>& r) {
  if (p.residual == Residual::kTensor) {
    return std::vector<double>(n.size(), p.scale * channel_scale(total(n), total(r)));
  }
  std::vector<double> gains(n.size());
  for (size_t j = 0; j < gains.size(); ++j) gains[j] = channel_scale(n[j], r[j]);
  if (p.residual == Residual::kScaled) return gains;
  const double most = std::isfinite(p.cap) ? p.cap * median_above_zero(gains) : p.cap;
  for (double& gain : gains) gain = p.scale * std::min(gain, most);
  return gains;
}

// What `squared`, of the norm of S, is multiplied by; keeps the norm that was let through.
double limited(const Job& job, const Params& p, double squared) {
  const double norm = std::sqrt(squared), floor = limiter_floor(double(size_of(job.g)));
  const double factor = limiter(norm, double(*job.limit), p.growth, floor);
  *job.limit = float(norm * factor);
  return factor;
}

// n <- scale N - share S; both lie alike in memory.
template <class T>
void fold(const Matrix& n, const Matrix& s, double scale, double share) {
  parallel_chunks(size_of(n), kChunk, [&](int64_t begin, int64_t end) {
    T* const direction = n.as<T>();
    const T* const other = s.as<T>();
    for (int64_t i = begin; i < end; ++i) {
      direction[i] = folded_direction(T(scale), direction[i], T(share), other[i]);
    }
  });
}

// W <- keep W - lr (scale P N + phi (G - kappa P R)) by one product: P (scale N - kappa phi R). R becomes phi R.
template <class T>
void write_back_scaled(const Job& job, const Params& p, const Matrix& n, const Matrix& r) {
  const std::vector<double> r_squares = column_squares(r), gains = channel_gains(p, column_squares(n), r_squares);
  const bool rest = p.residual == Residual::kScaled;
  const double kappa = rest ? p.residual_scale : 0.0;
  if (rest) scale<T>(r, nullptr, rounded<T>(gains, 1.0).data());
  double factor = 1.0;
  if (job.limit) {
    const double g = weighted(gains, column_squares(job.g)), inside = weighted(gains, r_squares);
    factor = limited(job, p, residual_norm(g, inside, rest ? lifted_square<T>(job.basis, r) : 0.0, kappa));
  }
  ScaledWriteBack product{plain_write_back(job, p, n), gradient_of(job, p)};
  product.step = p.lr;
  if (rest) {
    fold<T>(n, r, p.scale, kappa * factor);
  } else {
    product.left = job.basis.block(0, 0, job.basis.rows, 0);
    product.right = n.block(0, 0, 0, n.cols);
  }
  const Buffer<T> factors = rounded<T>(gains, p.lr * factor);
  product.col_gains = factors.data();
  weight_level().write_back_scaled(along_memory(product));
}

// `width` columns of n, then as many of r, and so on, as the rows of the result; zeros fill the last ones.
template <class T>
MatrixBuffer<T> paired(const Matrix& n, const Matrix& r, int64_t width) {
  const int64_t groups = (n.cols + width - 1) / width;
  MatrixBuffer<T> lines(2 * width * groups, n.rows);
  parallel_for(groups, [&](int64_t group) {
    const int64_t begin = group * width, count = std::min(width, n.cols - begin);
    const Matrix pair = lines.view().block(2 * begin, 0, 2 * width, n.rows);
    if (count < width) std::fill_n(pair.as<T>(), size_of(pair), T(0));
    copy(pair.block(0, 0, count, n.rows), n.block(0, begin, n.rows, count).transposed());
    copy(pair.block(width, 0, count, n.rows), r.block(0, begin, n.rows, count).transposed());
  });
  return lines;
}

template <class T>
void write_back_sign(const Job& job, const Params& p, const Matrix& n, const Matrix& r) {
  SignWriteBack product{plain_write_back(job, p, n), gradient_of(job, p)};
  product.gain = p.lr * p.residual_scale;
  product.threshold = sign_threshold(largest_magnitude(job.g), double(r.rows), sizeof(T) == 8 ? 0x1p-53 : 0x1p-24);
  product.rows_paired = runs_along_columns(job.w);
  product = along_memory(product);
  MatrixBuffer<T> lines = paired<T>(n, r, weight_level().paired_lines(product.rows_paired, product.arithmetic));
  (product.rows_paired ? product.left : product.right) = product.rows_paired ? lines.view() : lines.view().transposed();
  weight_level().write_back_sign(product);
}

template <class T>
void update(const Job& job, const Params& p) {
  if (p.residual == Residual::kDrop) {
    advance(job, p, job.low);
    if (job.w.empty()) return;
    return weight_level().write_back(along_memory(plain_write_back(job, p, job.low)));
  }
  Buffer<T> memory(size_of(job.low));
  parallel_chunks(memory.size(), kChunk, [&](int64_t begin, int64_t end) {
    std::copy(job.low.as<T>() + begin, job.low.as<T>() + end, memory.data() + begin);
  });
  Matrix n = job.low;
  n.data = memory.data();
  advance(job, p, n);
  if (job.w.empty()) return;
  if (p.residual == Residual::kSign) return write_back_sign<T>(job, p, n, job.low);
  write_back_scaled<T>(job, p, n, job.low);
}

}  // namespace

bool project_cpu(const std::vector<Job>& jobs, const Params& params) {
  std::atomic<bool> sound{true};
  for_each_job(jobs, [&](const Job& job) {
    if (job.low.empty()) {  // nothing that a gradient could show in
      if (!std::isfinite(largest_magnitude(job.g))) sound = false;
      return;
    }
    gemm(job.low, job.basis.transposed(), job.g, {.alpha = params.maximize ? -1.0 : 1.0, .math = params.math});
    if (!finite(job.low)) sound = false;
  });
  return sound;
}

void update_cpu(const std::vector<Job>& jobs, const Params& params) {
  for_each_job(jobs, [&](const Job& job) {
    job.low.dtype == DType::kFloat64 ? update<double>(job, params) : update<float>(job, params);
  });
}

void round_cpu(const Matrix& to, const Matrix& from, uint64_t seed, int64_t step) {
  const bool turned = runs_along_columns(to);
  const Target target{turned ? to.transposed() : to, turned, true, seed, step};
  weight_level().round(target, turned ? from.transposed() : from);
}

void encode_cpu(const Moment& to, const float* values, int64_t size, bool second, uint64_t seed, int64_t step) {
  parallel_chunks(size, kChunk, [&](int64_t begin, int64_t end) {
    moment_level().encode(to, values + begin, begin, end, size, second, seed, step);
  });
}

void decode_cpu(float* values, const Moment& from, int64_t size, bool second) {
  parallel_chunks(size, kChunk,
                  [&](int64_t begin, int64_t end) { moment_level().decode(values + begin, from, begin, end, second); });
}

}  // namespace lowrank::subspace_step
