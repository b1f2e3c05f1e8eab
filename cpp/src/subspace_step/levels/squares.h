// squares: sums of squares of lines, for the norms that a step needs before it writes.
#pragma once

#include "lowrank_core/dense.h"
#include "subspace_step/target_line.h"

namespace lowrank::LRC_LEVEL {
namespace {

// `count` elements of row i of `m` from column j on.
LRC_INLINE void load_line(double* to, const Matrix& m, int64_t i, int64_t j, int count) {
  const int64_t at = i * m.row_stride + j * m.col_stride;
  with_float_type(m.dtype, [&](auto tag) {
    const auto* from = m.as<decltype(tag)>() + at;
    if (m.col_stride == 1) {
      for (int k = 0; k < count; ++k) to[k] = double(to_float(from[k]));
    } else {
      for (int k = 0; k < count; ++k) to[k] = double(to_float(from[k * m.col_stride]));
    }
  });
}

void add_column_squares(double* sums, const Matrix& x) {
  constexpr int few = 256;
  double line[few];
  const bool by_columns = x.row_stride * x.row_stride < x.col_stride * x.col_stride;
  const Matrix lines = by_columns ? x.transposed() : x;
  for (int64_t i = 0; i < lines.rows; ++i) {
    for (int64_t j = 0; j < lines.cols; j += few) {
      const int count = int(smaller(few, lines.cols - j));
      load_line(line, lines, i, j, count);
      if (by_columns) {
        sums[i] += DenseLevel::LRC_LEVEL.vectors.twofold.dot(line, line, count);
      } else {
        for (int k = 0; k < count; ++k) sums[j + k] += line[k] * line[k];
      }
    }
  }
}

LRC_INLINE double sum_of(const Vec<double>& v) {
  double sum = 0.0;
  for (int k = 0; k < kLanes<double>; ++k) sum += v[k];
  return sum;
}

void add_squares(double* rows, double* cols, const Matrix& x) {
  with_float_type(x.dtype, [&](auto tag) {
    for (int64_t i = 0; i < x.rows; ++i) {
      const auto* const line = x.as<decltype(tag)>() + i * x.row_stride;
      Vec<double> sum{};
      for (int64_t j = 0; j < x.cols; j += kLanes<double>) {
        const int count = int(smaller(kLanes<double>, x.cols - j));
        const Vec<double> value = load_part<double>(line + j * x.col_stride, x.col_stride, count);
        sum += value * value;
        store_part<double, double>(cols + j, 1, load_part<double>(cols + j, 1, count) + value * value, count, nullptr);
      }
      rows[i] += sum_of(sum);
    }
  });
}

double weighted_squares(const double* rows, const double* cols, const Matrix& x) {
  double total = 0.0;
  with_float_type(x.dtype, [&](auto tag) {
    for (int64_t i = 0; i < x.rows; ++i) {
      const auto* const line = x.as<decltype(tag)>() + i * x.row_stride;
      Vec<double> sum{};
      for (int64_t j = 0; j < x.cols; j += kLanes<double>) {
        const int count = int(smaller(kLanes<double>, x.cols - j));
        const Vec<double> value = load_part<double>(line + j * x.col_stride, x.col_stride, count);
        sum += load_part<double>(cols + j, 1, count) * (value * value);
      }
      total += rows[i] * sum_of(sum);
    }
  });
  return total;
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
