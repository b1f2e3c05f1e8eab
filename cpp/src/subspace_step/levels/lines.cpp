// Sums of squares along the lines of a matrix, in turns by rows and by columns, and the step with its lines balanced.
#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/magnitude.h"
#include "subspace_step/level.h"
#include "subspace_step/target_line.h"

namespace lowrank::LRC_LEVEL {
namespace {

using namespace subspace_step;

constexpr int64_t kLane = kLanes<float>;
constexpr int kTogether = 4;  // rows side by side, so that what belongs to a column is read once for all of them

// part(j, from): numbers j, j + 1, ... of a line of n; zeros beyond its end.
template <class Part>
LRC_INLINE void for_each_part(int64_t n, const Part& part) {
  int64_t j = 0;
  for (; j + kLane <= n; j += kLane) {
    part(j, [](const auto* from) { return load<float>(from); });
  }
  if (j < n) {
    part(j, [n, j](const auto* from) { return load_first<float>(from, n - j); });
  }
}

LRC_INLINE double sum_of(const Vec<float>& parts) {
  float some[kLane];
  store_bits(some, parts);
  for (int64_t width = kLane / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) some[i] += some[i + width];
  }
  return double(some[0]);
}

template <class S>
struct Row {
  const S* numbers;
  Vec<float> scale, factor;

  template <class Load>
  LRC_INLINE Vec<float> squares(int64_t j, const Load& load) const {
    const Vec<float> x = load(numbers + j) * scale;
    return x * x;
  }
};

// kCount rows from `first` on.
template <int kCount, class S>
void balance(const Balance& b, int64_t first, float* sums) {
  const int64_t n = b.g.cols;
  Row<S> rows[kCount];
  Vec<float> totals[kCount] = {};
  for (int r = 0; r < kCount; ++r) {
    rows[r].numbers = b.g.as<S>() + (first + r) * b.g.row_stride;
    if (b.first) b.scales[first + r] = line_scale(float(to_float(largest_magnitude_of(rows[r].numbers, n))));
    rows[r].scale = broadcast(b.scales[first + r]);
  }
  for_each_part(n, [&](int64_t j, const auto& load) {
    const Vec<float> column = load(b.columns + j);
    for (int r = 0; r < kCount; ++r) totals[r] = multiply_add(rows[r].squares(j, load), column, totals[r]);
  });
  for (int r = 0; r < kCount; ++r) {
    b.rows[first + r] = float(line_factor(sum_of(totals[r]), double(n)));
    rows[r].factor = broadcast(b.rows[first + r]);
  }
  if (!sums) return;
  for_each_part(n, [&](int64_t j, const auto& load) {
    Vec<float> total = load(sums + j);
    for (int r = 0; r < kCount; ++r) total = multiply_add(rows[r].squares(j, load), rows[r].factor, total);
    memcpy(sums + j, &total, sizeof(float) * size_t(smaller(kLane, n - j)));
  });
}

void balance_rows(const Balance& b, int64_t begin, int64_t end, float* sums) {
  with_float_type(b.g.dtype, [&](auto tag) {
    using S = decltype(tag);
    int64_t i = begin;
    for (; i + kTogether <= end; i += kTogether) balance<kTogether, S>(b, i, sums);
    for (; i < end; ++i) balance<1, S>(b, i, sums);
  });
}

void balance_columns(const Balance& b, const float* sums, int64_t count) {
  constexpr int64_t few = 256;
  for (int64_t j = 0; j < b.g.cols; j += few) {
    const int64_t some = smaller(few, b.g.cols - j);
    double totals[few] = {};
    for (int64_t k = 0; k < count; ++k) {
      const float* const block = sums + k * b.g.cols + j;
      for (int64_t i = 0; i < some; ++i) totals[i] += double(block[i]);
    }
    for (int64_t i = 0; i < some; ++i) b.columns[j + i] = float(line_factor(totals[i], double(b.g.rows)));
  }
}

// Row by row, so that weight and gradient are each read along memory.
template <class T>
void write_as(const LinesWriteBack& p, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  const Matrix& w = p.to.w;
  const Vec<Acc> keep = broadcast(Acc(p.keep)), step = broadcast(Acc(p.step));
  for (int64_t i = begin; i < end; ++i) {
    const Vec<Acc> scale = broadcast(Acc(p.row_scales[i])), root = broadcast(Acc(p.row_roots[i]));
    for (int64_t j = 0; j < w.cols; j += kLongestLine) {
      const int cols = int(smaller(kLongestLine, w.cols - j));
      for_each_line<T>(p.to, i, j, 1, cols, [&](int, const uint32_t* words) {
        T* const line = w.as<T>() + i * w.row_stride + j * w.col_stride;
        for (int k = 0; k < cols; k += kPart<Acc>) {
          const int some = part_at<Acc>(k, cols);
          const Vec<Acc> column_scale = load_part<Acc>(p.column_scales + j + k, 1, some);
          const Vec<Acc> column_root = load_part<Acc>(p.column_roots + j + k, 1, some);
          const Vec<Acc> entry =
              line_entry(load_part<Acc>(p.g, i, j + k, some), scale, root, column_scale, column_root);
          T* const at = line + k * w.col_stride;
          const Vec<Acc> value = load_part<Acc>(at, w.col_stride, some);
          store_part<T, Acc>(at, w.col_stride, write_back(keep, value, step, entry), some, words ? words + k : words);
        }
      });
    }
  }
}

void write(const LinesWriteBack& p, int64_t begin, int64_t end) {
  with_float_type(p.to.w.dtype, [&](auto tag) { write_as<decltype(tag)>(p, begin, end); });
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const subspace_step::LinesLevel subspace_step::LinesLevel::LRC_LEVEL = {
    .balance_rows = LRC_LEVEL::balance_rows,
    .balance_columns = LRC_LEVEL::balance_columns,
    .write = LRC_LEVEL::write,
};

}  // namespace lowrank
