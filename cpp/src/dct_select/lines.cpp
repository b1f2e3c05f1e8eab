#include "dct_select/lines.h"

#include <algorithm>

#include "dct_select/engine.h"
#include "lowrank_core/parallel.h"

namespace lowrank::dct_select {
namespace {

constexpr int64_t kTaskNumbers = int64_t(1) << 14;

bool by_rows(const Matrix& m) { return std::abs(m.col_stride) <= std::abs(m.row_stride); }

// f(begin, end) of `lines` lines of `length` numbers.
template <class F>
void for_lines(int64_t lines, int64_t length, const F& f) {
  parallel_chunks(lines, std::max<int64_t>(1, kTaskNumbers / std::max<int64_t>(1, length)), f);
}

template <class A, class O>
void take(const Matrix& out, const Matrix& a, const int64_t* columns, double factor) {
  const accumulator_t<A> keep(factor);
  const int64_t a_rows = a.row_stride, a_cols = a.col_stride, out_rows = out.row_stride, out_cols = out.col_stride;
  const auto number = [keep](O& to, A& x) {
    to = Store<O>::from(to_float(x));
    x = Store<A>::from(keep * to_float(x));
  };
  if (by_rows(a)) {
    for_lines(a.rows, out.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        A* const line = a.as<A>() + i * a_rows;
        O* const to = out.as<O>() + i * out_rows;
        for (int64_t k = 0; k < out.cols; ++k) number(to[k * out_cols], line[columns[k] * a_cols]);
      }
    });
    return;
  }
  for_lines(out.cols, a.rows, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      A* const line = a.as<A>() + columns[k] * a_cols;
      O* const to = out.as<O>() + k * out_cols;
      if (a_rows == 1 && out_rows == 1) {
        for (int64_t i = 0; i < a.rows; ++i) number(to[i], line[i]);
      } else {
        for (int64_t i = 0; i < a.rows; ++i) number(to[i * out_rows], line[i * a_rows]);
      }
    }
  });
}

template <class O, class F>
void put(const Matrix& out, const Matrix& from, const int64_t* columns) {
  const int64_t out_rows = out.row_stride, out_cols = out.col_stride;
  if (by_rows(out)) {
    for_lines(out.rows, out.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        O* const line = out.as<O>() + i * out_rows;
        const F* const given = from.as<F>() + i * from.row_stride;
        if (out_cols == 1) {
          std::fill_n(line, out.cols, O{});
        } else {
          for (int64_t k = 0; k < out.cols; ++k) line[k * out_cols] = O{};
        }
        for (int64_t k = 0; k < from.cols; ++k) {
          line[columns[k] * out_cols] = Store<O>::from(to_float(given[k * from.col_stride]));
        }
      }
    });
    return;
  }
  std::vector<int64_t> source(size_t(out.cols), -1);
  for (int64_t k = 0; k < from.cols; ++k) source[size_t(columns[k])] = k;
  for_lines(out.cols, out.rows, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      O* const line = out.as<O>() + j * out_cols;
      const int64_t k = source[size_t(j)];
      const F* const given = k < 0 ? nullptr : from.as<F>() + k * from.col_stride;
      if (!given) {
        for (int64_t i = 0; i < out.rows; ++i) line[i * out_rows] = O{};
      } else {
        for (int64_t i = 0; i < out.rows; ++i)
          line[i * out_rows] = Store<O>::from(to_float(given[i * from.row_stride]));
      }
    }
  });
}

}  // namespace

void take_columns(const Matrix& out, const Matrix& a, const int64_t* columns, double keep) {
  with_float_type(a.dtype, [&](auto tag) {
    with_float_type(out.dtype, [&](auto to) { take<decltype(tag), decltype(to)>(out, a, columns, keep); });
  });
}

void put_columns(const Matrix& out, const Matrix& from, const int64_t* columns) {
  with_float_type(out.dtype, [&](auto tag) {
    with_float_type(from.dtype, [&](auto given) { put<decltype(tag), decltype(given)>(out, from, columns); });
  });
}

}  // namespace lowrank::dct_select
