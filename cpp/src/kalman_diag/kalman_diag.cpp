#include "lowrank_core/kalman_diag.h"

#include <algorithm>
#include <optional>

#include "kalman_diag/level.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/integers.h"
#include "lowrank_core/parallel.h"

namespace lowrank::kalman_diag {
namespace {

constexpr double kUnit = 0x1p-53;
constexpr int64_t kTask = 1 << 14;             // parameters of a task, at least
constexpr int64_t kTasks = 64;                 // of a pass, at most
constexpr int64_t kPartials = (64 << 20) / 8;  // numbers in the Gram matrices of all tasks, where they are large
constexpr int64_t kFewest = 8;                 // tasks that these may not take away
constexpr int64_t kWide = 256, kNarrow = 64;   // parameters of a chunk
constexpr int64_t kScratch = (1 << 20) / 8;    // numbers of a wide chunk, at most

// How the parameters of all blocks, one behind the other, are divided among tasks: by their number and that of the
// outputs alone.
class Partition {
 public:
  Partition(const std::vector<Block>& blocks, int64_t padded) : blocks_(blocks) {
    for (const Block& block : blocks) size_ += block.jac.cols;
    const int64_t most = std::max(kFewest, std::min(kTasks, kPartials / (padded * padded)));
    chunk_ = padded * kWide <= kScratch ? kWide : kNarrow;
    task_ = round_up(std::max(kTask, ceil_div(size_, most)), chunk_);
  }

  int64_t tasks() const { return ceil_div(size_, task_); }

  // f(block, run) for what one task has of each block, in order, with `rows` rows of scratch.
  template <class F>
  void for_each_run(int64_t task, int64_t rows, const F& f) const {
    Buffer<double> scratch(rows * chunk_);
    const int64_t begin = task * task_, end = std::min(size_, begin + task_);
    int64_t first = 0;  // parameter of the current block
    for (const Block& block : blocks_) {
      const int64_t from = std::max<int64_t>(0, begin - first), to = std::min(end - first, block.jac.cols);
      if (from < to) f(block, Run{from, to, scratch.data(), chunk_});
      first += block.jac.cols;
    }
  }

 private:
  const std::vector<Block>& blocks_;
  int64_t size_ = 0, chunk_, task_;
};

// X diag(p) Xᵀ over all blocks, lower triangle; X is jac, with score below it where it has data.
MatrixBuffer<double> weighted_gram(const std::vector<Block>& blocks, int64_t padded) {
  const Partition partition(blocks, padded);
  const int64_t area = padded * padded;
  Buffer<double> partial(partition.tasks() * area);
  parallel_for(partition.tasks(), [&](int64_t task) {
    double* const gram = partial.data() + task * area;
    std::fill(gram, gram + area, 0.0);
    partition.for_each_run(task, gram_rows(padded),
                           [&](const Block& block, const Run& run) { level().gram(gram, padded, block, run); });
  });
  MatrixBuffer<double> sum(padded, padded);
  std::fill(sum.data(), sum.data() + area, 0.0);
  for (int64_t task = 0; task < partition.tasks(); ++task) {
    const double* const gram = partial.data() + task * area;
    for (int64_t i = 0; i < area; ++i) sum[i] += gram[i];
  }
  return sum;
}

bool lower_is_finite(const MatrixBuffer<double>& a, int64_t rows) {
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t k = 0; k <= j; ++k) {
      if (!std::isfinite(a.row(j)[k])) return false;
    }
  }
  return true;
}

// Both triangles of the first m rows of a lower one.
MatrixBuffer<double> symmetric(const MatrixBuffer<double>& lower, int64_t m) {
  MatrixBuffer<double> whole(m, m);
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t k = 0; k <= j; ++k) whole.at(j, k) = whole.at(k, j) = lower.row(j)[k];
  }
  return whole;
}

// R⁻¹ of I + A = Rᵀ R. All pivots are >= 1 but for rounding; where that makes one vanish, the diagonal is raised by as
// much as its own rounding, which moves the result no further. None where a raised diagonal does not fit float64.
std::optional<MatrixBuffer<double>> inverse_root(const MatrixBuffer<double>& a, int64_t m) {
  for (double raise = 0.0; raise < 1.0; raise = raise > 0.0 ? 4.0 * raise : double(m) * kUnit) {
    MatrixBuffer<double> root = symmetric(a, m);
    for (int64_t j = 0; j < m; ++j) {
      root.at(j, j) += 1.0 + raise * root.at(j, j);
      if (!std::isfinite(root.at(j, j))) return std::nullopt;
    }
    if (!cholesky_upper(root.data(), m, 0.0)) continue;
    invert_upper(root.data(), m);
    return root;
  }
  return std::nullopt;
}

// (I + A)⁻¹ t = X Xᵀ t for X = R⁻¹, upper triangular.
Buffer<double> solved(const MatrixBuffer<double>& x, const double* t, int64_t m) {
  Buffer<double> half(m), w(m);
  for (int64_t j = 0; j < m; ++j) {
    half[j] = 0.0;
    for (int64_t k = 0; k <= j; ++k) half[j] += x.row(k)[j] * t[k];
  }
  for (int64_t k = 0; k < m; ++k) {
    w[k] = 0.0;
    for (int64_t j = k; j < m; ++j) w[k] += x.row(k)[j] * half[j];
  }
  return w;
}

// [padded, padded] with Xᵀ, which is L⁻¹, in front.
MatrixBuffer<double> padded_transpose(const MatrixBuffer<double>& x, int64_t m, int64_t padded) {
  MatrixBuffer<double> out(padded, padded);
  std::fill(out.data(), out.data() + out.size(), 0.0);
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t k = 0; k < m; ++k) out.at(j, k) = x.row(k)[j];
  }
  return out;
}

double element(const Matrix& a, int64_t i, int64_t j) {
  const int64_t at = i * a.row_stride + j * a.col_stride;
  return with_float_type(a.dtype, [&](auto tag) { return double(to_float(a.as<decltype(tag)>()[at])); });
}

// S <- S + R, and S <- D S D with a diagonal of ones; D as a vector, empty where a diagonal entry is not positive.
std::vector<double> equilibrated(MatrixBuffer<double>& s, const Matrix& r, bool diagonal) {
  const int64_t m = s.rows();
  for (int64_t j = 0; j < m; ++j) {
    if (diagonal) s.at(j, j) += element(r, 0, j);
    for (int64_t k = 0; k < (diagonal ? 0 : m); ++k) s.at(j, k) += 0.5 * (element(r, j, k) + element(r, k, j));
  }
  std::vector<double> d(static_cast<size_t>(m));
  for (int64_t j = 0; j < m; ++j) {
    if (!(s.at(j, j) > 0.0)) return {};
    d[size_t(j)] = 1.0 / std::sqrt(s.at(j, j));
  }
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t k = 0; k < m; ++k) s.at(j, k) *= d[size_t(j)] * d[size_t(k)];
  }
  return d;
}

// [padded, padded] with S⁻¹ in front, from X = R⁻¹ of D S D = Rᵀ R.
MatrixBuffer<double> padded_inverse(const MatrixBuffer<double>& x, const std::vector<double>& d, int64_t padded) {
  const int64_t m = x.rows();
  MatrixBuffer<double> out(padded, padded);
  std::fill(out.data(), out.data() + out.size(), 0.0);
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t k = 0; k <= j; ++k) {
      double sum = 0.0;
      for (int64_t l = j; l < m; ++l) sum += x.row(j)[l] * x.row(k)[l];
      out.at(j, k) = out.at(k, j) = sum * d[size_t(j)] * d[size_t(k)];
    }
  }
  return out;
}

}  // namespace

bool step_cpu(const std::vector<Block>& blocks, const Params& params) {
  const int64_t m = params.outputs, padded = round_up(m + 1, kRowTile);
  const MatrixBuffer<double> gram = weighted_gram(blocks, padded);
  if (!lower_is_finite(gram, m + 1)) return false;
  const std::optional<MatrixBuffer<double>> root = inverse_root(gram, m);
  if (!root) return false;
  const MatrixBuffer<double>& x = *root;
  const Buffer<double> w = solved(x, gram.row(m), m);
  double squared = 0.0;
  for (int64_t k = 0; k < m; ++k) squared += w[k] * w[k];
  const MatrixBuffer<double> inverse = padded_transpose(x, m, padded);
  const double rate = m == 0 ? 0.0 : capped_rate(params.lr, squared, params.limit);
  const Update update{m, padded, inverse.data(), w.data(), rate};
  const Partition partition(blocks, padded);
  parallel_for(partition.tasks(), [&](int64_t task) {
    partition.for_each_run(task, update_rows(padded),
                           [&](const Block& block, const Run& run) { level().update(update, block, run); });
  });
  return true;
}

Outcome gain_cpu(const Matrix& k, const Matrix& p, const Matrix& h, const Matrix& r, bool diagonal) {
  const int64_t m = h.rows, padded = std::max(kRowTile, round_up(m, kRowTile));
  Block block{};
  block.p = p;
  block.jac = h;
  const std::vector<Block> blocks{block};
  const MatrixBuffer<double> gram = weighted_gram(blocks, padded);
  if (!lower_is_finite(gram, m)) return Outcome::kNotFinite;
  MatrixBuffer<double> s = symmetric(gram, m);
  const std::vector<double> d = equilibrated(s, r, diagonal);
  if (d.size() != size_t(m) || !cholesky_upper(s.data(), m, double(m) * kUnit)) return Outcome::kNotPositive;
  invert_upper(s.data(), m);
  const MatrixBuffer<double> inverse = padded_inverse(s, d, padded);
  const Partition partition(blocks, padded);
  parallel_for(partition.tasks(), [&](int64_t task) {
    partition.for_each_run(task, gain_rows(padded),
                           [&](const Block& b, const Run& run) { level().gain(k, inverse.data(), padded, b, run); });
  });
  return Outcome::kDone;
}

}  // namespace lowrank::kalman_diag
