// squares: sums of squares of lines, for the norms that a step needs before it writes.
#pragma once

#include <type_traits>

#include "subspace_step/target_line.h"

namespace lowrank::LRC_LEVEL {
namespace {

constexpr int kRowsAtOnce = 4;  // whose sums hide each other's latency, and share what is read beside them

constexpr int64_t kAheadBytes = 2048;  // prefetchers of their own stop at the end of a page

template <class T>
LRC_INLINE void fetch_ahead(const T* from) {
  __builtin_prefetch(reinterpret_cast<const char*>(from) + kAheadBytes);
}

LRC_INLINE double sum_of(const Vec<double>& v) {
  double sum = 0.0;
  for (int k = 0; k < kLanes<double>; ++k) sum += v[k];
  return sum;
}

// Calls part(j, count) for the parts of a line of `n` entries: `count` is a constant in all but the last one.
template <class Part>
LRC_INLINE void for_each_part(int64_t n, const Part& part) {
  int64_t j = 0;
  for (; j + kLanes<double> <= n; j += kLanes<double>) part(j, kLanes<double>);
  if (j < n) part(j, int(n - j));
}

// Calls some(i, rows) for the rows of `x`, a few at a time: `rows` is a std::integral_constant.
template <class Some>
LRC_INLINE void for_each_rows(int64_t rows, const Some& some) {
  int64_t i = 0;
  for (; i + kRowsAtOnce <= rows; i += kRowsAtOnce) some(i, std::integral_constant<int, kRowsAtOnce>());
  for (; i < rows; ++i) some(i, std::integral_constant<int, 1>());
}

// sums[r] += squares of row r of `x`, lane by lane; cols[j] += those of column j, row after row.
template <int kRowCount, class T>
LRC_INLINE void add_rows_squares(Vec<double>* sums, double* cols, const T* x, const Matrix& like) {
  const int64_t step = like.col_stride;
  const auto part = [&](int64_t j, int count, int64_t apart) LRC_INLINE_LAMBDA {
    Vec<double> of_cols = load_part<double>(cols + j, 1, count);
    for (int r = 0; r < kRowCount; ++r) {
      if (apart == 1) fetch_ahead(x + r * like.row_stride + j);
      const Vec<double> value = load_part<double>(x + r * like.row_stride + j * apart, apart, count);
      sums[r] += value * value;
      of_cols += value * value;
    }
    store_part<double, double>(cols + j, 1, of_cols, count, nullptr);
  };
  if (step == 1) return for_each_part(like.cols, [&](int64_t j, int count) LRC_INLINE_LAMBDA { part(j, count, 1); });
  for_each_part(like.cols, [&](int64_t j, int count) LRC_INLINE_LAMBDA { part(j, count, step); });
}

void add_squares(double* rows, double* cols, const Matrix& x) {
  with_float_type(x.dtype, [&](auto tag) {
    for_each_rows(x.rows, [&](int64_t i, auto some) {
      Vec<double> sums[decltype(some)::value] = {};
      add_rows_squares<decltype(some)::value>(sums, cols, x.as<decltype(tag)>() + i * x.row_stride, x);
      for (int r = 0; rows && r < decltype(some)::value; ++r) rows[i + r] += sum_of(sums[r]);
    });
  });
}

// Of lines that run along memory.
void add_line_squares(double* sums, const Matrix& lines) {
  with_float_type(lines.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t i = 0; i < lines.rows; ++i) {
      const T* const line = lines.as<T>() + i * lines.row_stride;
      Vec<double> sum[kRowsAtOnce] = {};
      int64_t j = 0;
      constexpr int64_t width = kRowsAtOnce * kLanes<double>;
      for (; lines.col_stride == 1 && j + width <= lines.cols; j += width) {
        for (int v = 0; v < kRowsAtOnce; ++v) {
          const T* const at = line + j + v * kLanes<double>;
          fetch_ahead(at);
          const Vec<double> value = load<double>(at);
          sum[v] += value * value;
        }
      }
      for (; j < lines.cols; j += kLanes<double>) {
        const int count = int(smaller(kLanes<double>, lines.cols - j));
        const Vec<double> value = load_part<double>(line + j * lines.col_stride, lines.col_stride, count);
        sum[0] += value * value;
      }
      sums[i] += sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
  });
}

void add_column_squares(double* sums, const Matrix& x) {
  const bool by_columns = x.row_stride * x.row_stride < x.col_stride * x.col_stride;
  by_columns ? add_line_squares(sums, x.transposed()) : add_squares(nullptr, sums, x);
}

double weighted_squares(const double* rows, const double* cols, const Matrix& x) {
  double total = 0.0;
  with_float_type(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_each_rows(x.rows, [&](int64_t i, auto some) {
      const T* const from = x.as<T>() + i * x.row_stride;
      Vec<double> sums[decltype(some)::value] = {};
      const auto part = [&](int64_t j, int count, int64_t apart) LRC_INLINE_LAMBDA {
        const Vec<double> weight = load_part<double>(cols + j, 1, count);
        for (int r = 0; r < decltype(some)::value; ++r) {
          if (apart == 1) fetch_ahead(from + r * x.row_stride + j);
          const Vec<double> value = load_part<double>(from + r * x.row_stride + j * apart, apart, count);
          sums[r] += weight * (value * value);
        }
      };
      if (x.col_stride == 1) {
        for_each_part(x.cols, [&](int64_t j, int count) LRC_INLINE_LAMBDA { part(j, count, 1); });
      } else {
        for_each_part(x.cols, [&](int64_t j, int count) LRC_INLINE_LAMBDA { part(j, count, x.col_stride); });
      }
      for (int r = 0; r < decltype(some)::value; ++r) total += rows[i + r] * sum_of(sums[r]);
    });
  });
  return total;
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
