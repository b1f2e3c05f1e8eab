#include "lowrank_core/subspace_step.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "lowrank_core/buffer.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/parallel.h"
#include "subspace_step/job.h"

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

// Squared norms of channels: N_j, R_j, G_j, and P R_j, which is R_jᵀ (Pᵀ P) R_j.
struct ChannelNorms {
  std::vector<double> n, r, g, pr;
};

// sums[j] += squares of column j
void add_column_squares(std::vector<double>& sums, const Matrix& x) {
  parallel_chunks(x.cols, kColumns, [&](int64_t begin, int64_t end) {
    weight_level().add_column_squares(sums.data() + begin, x.block(0, begin, x.rows, end - begin));
  });
}

template <class T>
void projected_squares(std::vector<double>& sums, const Job& job, const Matrix& r) {
  MatrixBuffer<T> gram_matrix(r.rows, r.rows), image(r.rows, r.cols);
  gemm(gram_matrix.view(), job.basis.transposed(), job.basis);
  gemm(image.view(), gram_matrix.view(), r);
  parallel_chunks(r.cols, kColumns, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < r.rows; ++i) {
      const T* row = r.as<T>() + i * r.row_stride;
      for (int64_t j = begin; j < end; ++j) sums[size_t(j)] += double(image.at(i, j)) * double(row[j * r.col_stride]);
    }
  });
}

template <class T>
ChannelNorms channel_norms(const Job& job, const Params& p, const Matrix& n, const Matrix& r) {
  const auto channels = size_t(r.cols);
  ChannelNorms norms{std::vector<double>(channels), std::vector<double>(channels), {}, {}};
  add_column_squares(norms.n, n);
  add_column_squares(norms.r, r);
  if (!job.limit) return norms;
  norms.g.resize(channels);
  norms.pr.resize(channels);
  add_column_squares(norms.g, job.g);
  if (p.residual == Residual::kScaled) projected_squares<T>(norms.pr, job, r);
  return norms;
}

// phi_j, with the limiter's factor; keeps the norm that was let through.
std::vector<double> channel_gains(const Job& job, const Params& p, const ChannelNorms& norms) {
  std::vector<double> gains(norms.n.size());
  double squared = 0.0;
  const double kappa = p.residual == Residual::kScaled ? p.residual_scale : 0.0;
  for (size_t j = 0; j < gains.size(); ++j) {
    gains[j] = channel_scale(norms.n[j], norms.r[j]);
    if (p.residual == Residual::kChannel) gains[j] *= p.scale;
    if (job.limit) squared += gains[j] * gains[j] * residual_norm(norms.g[j], norms.r[j], norms.pr[j], kappa);
  }
  if (!job.limit) return gains;
  const double norm = std::sqrt(squared), floor = limiter_floor(double(size_of(job.g)));
  const double factor = limiter(norm, double(*job.limit), p.growth, floor);
  for (double& gain : gains) gain *= factor;
  *job.limit = float(norm * factor);
  return gains;
}

// n <- scale N - kappa phi R; both lie alike in memory, along which they are read.
template <class T>
void fold(const Matrix& n, const Matrix& r, const Params& p, const std::vector<double>& gains) {
  const bool by_channel = runs_along_columns(n);
  const Matrix lines = by_channel ? n.transposed() : n, others = by_channel ? r.transposed() : r;
  parallel_chunks(lines.rows, std::max<int64_t>(1, kChunk / lines.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* const direction = lines.as<T>() + i * lines.row_stride;
      const T* const low = others.as<T>() + i * others.row_stride;
      for (int64_t j = 0; j < lines.cols; ++j) {
        const T share = T(p.residual_scale * gains[size_t(by_channel ? i : j)]);
        T& value = direction[j * lines.col_stride];
        value = folded_direction(T(p.scale), value, share, low[j * others.col_stride]);
      }
    }
  });
}

// W <- keep W - lr (scale P N + phi (G - kappa P R)) by one product: P (scale N - kappa phi R).
template <class T>
void write_back_scaled(const Job& job, const Params& p, const Matrix& n, const Matrix& r) {
  const std::vector<double> gains = channel_gains(job, p, channel_norms<T>(job, p, n, r));
  ScaledWriteBack product{plain_write_back(job, p, n), gradient_of(job, p)};
  product.step = p.lr;
  if (p.residual == Residual::kChannel) {
    product.left = job.basis.block(0, 0, job.basis.rows, 0);
    product.right = n.block(0, 0, 0, n.cols);
  } else {
    fold<T>(n, r, p, gains);
  }
  Buffer<T> factors(int64_t(gains.size()));
  for (size_t j = 0; j < gains.size(); ++j) factors[int64_t(j)] = T(p.lr * gains[j]);
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
