// Weights that step along their gradient with balanced lines.
#include <algorithm>
#include <cmath>

#include "lowrank_core/buffer.h"
#include "lowrank_core/parallel.h"
#include "subspace_step/level.h"

namespace lowrank::subspace_step {
namespace {

constexpr int64_t kBlockRows = 64;  // rows whose sums of columns are taken in float32; those of blocks in float64
constexpr int64_t kOneThreadEach = 1 << 18;  // elements of a matrix that stays in one core's cache, whose turns wait
                                             // for nobody then

int64_t blocks_of(const Matrix& m) { return (m.rows + kBlockRows - 1) / kBlockRows; }

// body(number, begin, end) for the blocks of rows of `m`.
template <class Body>
void for_each_block(const Matrix& m, const Body& body) {
  parallel_for(blocks_of(m), [&](int64_t k) { body(k, k * kBlockRows, std::min(m.rows, (k + 1) * kBlockRows)); });
}

// `count` times the factor of lines that are left as they are.
class LineFactors : public Buffer<float> {
 public:
  explicit LineFactors(int64_t count, double value = 1.0) : Buffer<float>(count) {
    std::fill(data(), data() + count, float(value));
  }
};

// The factors of one weight, and its way back.
class LinesStep {
 public:
  LinesStep(const LinesJob& job, const LinesParams& params)
      : g_(job.g),
        scale_(float(job.scale)),
        row_scales_(g_.rows),
        row_roots_(g_.rows, job.scale),
        column_scales_(g_.cols),
        column_roots_(g_.cols),
        back_{.to = {.w = job.w, .stochastic = params.stochastic, .seed = job.seed, .number = job.step},
              .g = g_,
              .keep = keep_factor(params.lr, params.weight_decay),
              .step = (params.maximize ? -1.0 : 1.0) * params.lr,
              .row_scales = row_scales_.data(),
              .row_roots = row_roots_.data(),
              .column_scales = column_scales_.data(),
              .column_roots = column_roots_.data()} {}

  void write() {
    for_each_block(g_, [&](int64_t, int64_t begin, int64_t end) { lines_level().write(back_, begin, end); });
  }

  void rows() {
    for_each_block(g_, [&](int64_t, int64_t begin, int64_t end) {
      lines_level().balance_rows(balance(true), begin, end, nullptr);
      take_roots(row_roots_, begin, end, scale_);
      lines_level().write(back_, begin, end);
    });
  }

  // In float64, which has room for the squares of all numbers of the gradient.
  void columns() {
    const int64_t n = g_.cols, blocks = blocks_of(g_);
    Buffer<double> sums(blocks * n);
    for_each_block(g_, [&](int64_t k, int64_t begin, int64_t end) {
      std::fill(&sums[k * n], &sums[k * n] + n, 0.0);
      weight_level().add_column_squares(&sums[k * n], g_.block(begin, 0, end - begin, n));
    });
    for (int64_t j = 0; j < n; ++j) {
      double total = 0.0;
      for (int64_t k = 0; k < blocks; ++k) total += sums[k * n + j];
      column_scales_[j] = line_scale(float(std::sqrt(total)));
      column_roots_[j] = float(std::sqrt(line_factor(total, double(g_.rows))) / double(column_scales_[j]));
    }
    write();
  }

  void both(int iterations) {
    const int64_t n = g_.cols;
    Buffer<float> sums(blocks_of(g_) * n);
    for (int turn = 0; turn < iterations; ++turn) {
      const Balance now = balance(turn == 0);
      for_each_block(g_, [&](int64_t k, int64_t begin, int64_t end) {
        std::fill(&sums[k * n], &sums[k * n] + n, 0.0f);
        lines_level().balance_rows(now, begin, end, &sums[k * n]);
      });
      lines_level().balance_columns(now, sums.data(), blocks_of(g_));
    }
    take_roots(row_roots_, 0, g_.rows, scale_);
    take_roots(column_roots_, 0, n);
    write();
  }

 private:
  Balance balance(bool first) { return {g_, row_scales_.data(), row_roots_.data(), column_roots_.data(), first}; }
  static void take_roots(Buffer<float>& factors, int64_t begin, int64_t end, float scale = 1.0f) {
    for (int64_t i = begin; i < end; ++i) factors[i] = root(factors[i]) * scale;
  }

  const Matrix g_;
  const float scale_;  // in the roots of the rows
  LineFactors row_scales_, row_roots_, column_scales_, column_roots_;
  const LinesWriteBack back_;
};

void step(const LinesJob& job, const LinesParams& params) {
  if (job.g.empty()) return;
  LinesStep step(job, params);
  switch (params.lines) {
    case Lines::kNone:
      return step.write();
    case Lines::kRows:
      return step.rows();
    case Lines::kColumns:
      return step.columns();
    case Lines::kBoth:
      return step.both(params.iterations);
  }
}

}  // namespace

void lines_cpu(const std::vector<LinesJob>& jobs, const LinesParams& params) {
  std::vector<const LinesJob*> small;
  for (const LinesJob& job : jobs) {
    if (job.g.rows * job.g.cols <= kOneThreadEach) {
      small.push_back(&job);
    } else {
      step(job, params);
    }
  }
  parallel_for(int64_t(small.size()), [&](int64_t i) { step(*small[size_t(i)], params); });
}

}  // namespace lowrank::subspace_step
