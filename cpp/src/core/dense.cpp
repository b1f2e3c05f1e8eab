#include "lowrank_core/dense.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "lowrank_core/dispatch.h"
#include "lowrank_core/reduce.h"

namespace lowrank {
namespace {

// Elements per unit of work of an elementwise pass: large enough to hide the start of a thread.
constexpr int64_t kChunk = 1 << 15;
constexpr int64_t kTransposedRows = 64;  // of a copy that transposes

// Walks along memory: the dimension with the smaller stride of `a` becomes the inner one.
bool prefers_transpose(const Matrix& a) { return std::abs(a.row_stride) < std::abs(a.col_stride); }

template <class T>
double load(const T* p) {
  return double(to_float(*p));
}

// Takes a NaN, which then stays.
double larger(double kept, double size) { return size > kept || size != size ? size : kept; }

template <class T>
double squared_norm_of_row(const Matrix& a, int64_t i) {
  const T* x = a.as<T>() + i * a.row_stride;
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
    if (a.col_stride == 1) return vectors<T>().dot(x, x, a.cols);
  }
  double sum = 0.0;
  for (int64_t j = 0; j < a.cols; ++j) {
    const double value = load(x + j * a.col_stride);
    sum += value * value;
  }
  return sum;
}

// Largest magnitude of row i; NaN if one is.
double largest_of_row(const Matrix& a, int64_t i) {
  const Matrix row = a.block(i, 0, 1, a.cols);
  LRC_CHECK(is_float(row.dtype), std::string("array: the dtype must be a floating-point one, got ") + name(row.dtype));
  if (row.col_stride == 1 || row.cols == 1) return dense_level().largest(row.dtype, row.data, row.cols);
  double largest = 0.0;
  for (int64_t j = 0; j < row.cols; ++j) largest = larger(largest, largest_of_row(row.block(0, j, 1, 1), 0));
  return largest;
}

// One line of `count` elements.
template <class To, class From>
void copy_line(To* to, int64_t to_step, const From* from, int64_t from_step, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[i * to_step] = Store<To>::from(accumulator_t<From>(to_float(from[i * from_step])));
  }
}

// Rows [begin, end). A source that is stored by columns is read along them: few enough rows keep their lines in L1.
template <class To, class From>
void copy_rows(const Matrix& whole_to, const Matrix& whole_from, int64_t begin, int64_t end) {
  const Matrix to = whole_to.block(begin, 0, end - begin, whole_to.cols);
  const Matrix from = whole_from.block(begin, 0, end - begin, whole_to.cols);
  if (prefers_transpose(from)) {
    for (int64_t j = 0; j < to.cols; ++j) {
      copy_line(to.as<To>() + j * to.col_stride, to.row_stride, from.as<From>() + j * from.col_stride, from.row_stride,
                to.rows);
    }
    return;
  }
  for (int64_t i = 0; i < to.rows; ++i) {
    To* y = to.as<To>() + i * to.row_stride;
    const From* x = from.as<From>() + i * from.row_stride;
    if (to.col_stride == 1 && from.col_stride == 1) {
      copy_line(y, 1, x, 1, to.cols);
    } else {
      copy_line(y, to.col_stride, x, from.col_stride, to.cols);
    }
  }
}

}  // namespace

double squared_norm(const Matrix& a) {
  if (a.empty()) return 0.0;
  const Matrix m = prefers_transpose(a) ? a.transposed() : a;
  const int64_t rows = std::max<int64_t>(1, kChunk / m.cols);
  double total = 0.0;
  with_checked_float_type(m.dtype, [&](auto tag) {
    using T = decltype(tag);
    total = ordered_sum((m.rows + rows - 1) / rows, [&](int64_t part) {
      double sum = 0.0;
      for (int64_t i = part * rows; i < std::min(m.rows, (part + 1) * rows); ++i) sum += squared_norm_of_row<T>(m, i);
      return sum;
    });
  });
  return total;
}

double largest_magnitude(const Matrix& a) {
  if (a.empty()) return 0.0;
  const Matrix m = prefers_transpose(a) ? a.transposed() : a;
  const int64_t rows = std::max<int64_t>(1, kChunk / m.cols), parts = (m.rows + rows - 1) / rows;
  Buffer<double> partial(parts);
  parallel_for(parts, [&](int64_t part) {
    double largest = 0.0;
    for (int64_t i = part * rows; i < std::min(m.rows, (part + 1) * rows); ++i) {
      largest = larger(largest, largest_of_row(m, i));
    }
    partial[part] = largest;
  });
  double largest = 0.0;
  for (int64_t i = 0; i < parts; ++i) {
    largest = larger(largest, partial[i]);
  }
  return largest;
}

double scale_of(double largest) {
  return largest > 0.0 && std::isfinite(largest) ? std::ldexp(1.0, std::ilogb(largest)) : 1.0;
}

double scale_of(const Matrix& a) { return scale_of(largest_magnitude(a)); }

std::vector<double> column_magnitudes(const Matrix& a) {
  std::vector<double> largest(static_cast<size_t>(a.cols), 0.0);
  if (prefers_transpose(a)) {
    for (int64_t j = 0; j < a.cols; ++j) largest[size_t(j)] = largest_of_row(a.transposed(), j);
    return largest;
  }
  for (int64_t i = 0; i < a.rows; ++i) {
    const Matrix row = a.block(i, 0, 1, a.cols);
    if (row.col_stride == 1) {
      dense_level().raise(largest.data(), row.dtype, row.data, row.cols);
      continue;
    }
    for (int64_t j = 0; j < a.cols; ++j) {
      double& kept = largest[size_t(j)];
      kept = larger(kept, largest_of_row(row.block(0, j, 1, 1), 0));
    }
  }
  return largest;
}

void copy_divided(const Matrix& to, const Matrix& from, double scale) {
  LRC_CHECK(to.rows == from.rows && to.cols == from.cols, "copy_divided: the shapes must agree");
  with_checked_float_type(to.dtype, [&](auto to_tag) {
    with_checked_float_type(from.dtype, [&](auto from_tag) {
      using To = decltype(to_tag);
      parallel_for(to.rows, [&](int64_t i) {
        To* const y = to.as<To>() + i * to.row_stride;
        const auto* const x = from.as<decltype(from_tag)>() + i * from.row_stride;
        for (int64_t j = 0; j < to.cols; ++j) {
          y[j * to.col_stride] = Store<To>::from(load(x + j * from.col_stride) / scale);
        }
      });
    });
  });
}

void copy(const Matrix& to, const Matrix& from) {
  LRC_CHECK(to.rows == from.rows && to.cols == from.cols, "copy: the shapes must agree");
  if (to.empty()) return;
  if (prefers_transpose(from) && prefers_transpose(to)) return copy(to.transposed(), from.transposed());
  with_checked_float_type(to.dtype, [&](auto to_tag) {
    with_checked_float_type(from.dtype, [&](auto from_tag) {
      const int64_t rows = prefers_transpose(from) ? kTransposedRows : std::max<int64_t>(1, kChunk / to.cols);
      parallel_chunks(to.rows, rows, [&](int64_t begin, int64_t end) {
        copy_rows<decltype(to_tag), decltype(from_tag)>(to, from, begin, end);
      });
    });
  });
}

bool cholesky_upper(double* g, int64_t n, double floor) {
  Buffer<double> column(n);
  for (int64_t i = 0; i < n; ++i) {
    double* row = g + i * n;
    std::fill(row, row + i, 0.0);
    for (int64_t k = 0; k < i; ++k) column[k] = g[k * n + i];
    dense_level().subtract_rows(row + i, column.data(), 1, g + i, n, i, n - i);
    const double pivot = row[i];
    if (!(pivot > floor)) return false;  // also refuses a NaN
    const double root = std::sqrt(pivot);
    for (int64_t j = i; j < n; ++j) row[j] /= root;
  }
  return true;
}

void invert_upper(double* r, int64_t n) {
  // Row i of the inverse from the rows below it: X_i = (e_i - sum_{j>i} r_ij X_j) / r_ii, bottom up. A strip of columns
  // ends the rows that reach it.
  constexpr int64_t strip = 32;
  Buffer<double> row(n);
  for (int64_t i = n - 1; i >= 0; --i) {
    double* target = r + i * n;
    const int64_t below = n - i - 1;
    std::memcpy(row.data() + i, target + i, sizeof(double) * size_t(n - i));
    std::memset(target + i, 0, sizeof(double) * size_t(n - i));
    target[i] = 1.0;
    double* const behind = target + i + 1;
    for (int64_t j = 0; j < below; j += strip) {
      const int64_t end = std::min(below, j + strip);
      dense_level().subtract_rows(behind + j, row.data() + i + 1, 1, behind + n + j, n, end, end - j);
    }
    const double inverse = 1.0 / row[i];
    for (int64_t j = i; j < n; ++j) target[j] *= inverse;
  }
}

}  // namespace lowrank
