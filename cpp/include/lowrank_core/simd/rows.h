// rows: a vector's worth of rows of any array, read and written as one vector for each column.
#pragma once

#include "lowrank_core/simd/pack.h"
#include "lowrank_core/simd/strided_load.h"

namespace lowrank::LRC_LEVEL {
namespace {

// Rows first .. first + kLanes of a matrix of type S, as far as `end`; the others read as zeros and are not written.
template <class T, class S>
class Rows {
 public:
  Rows(const Matrix& m, int64_t first, int64_t end)
      : load_{m.as<S>(), end, m.cols, m.row_stride, m.col_stride, true}, first_(first), cols_(m.cols) {}

  // f(column, numbers): one vector down the rows for each column.
  template <class F>
  LRC_INLINE void for_each(const F& f) const {
    if (load_.depth_stride != 1) {
      for (int64_t j = 0; j < cols_; ++j) f(j, column(j));
      return;
    }
    for (int64_t j = 0; j < cols_; j += kLane) {
      Vec<T> block[kLane];
      read(j, block);
      if (j + kLane <= cols_) {
#pragma GCC unroll 16
        for (int i = 0; i < kLane; ++i) f(j + i, block[i]);
      } else {
        for (int i = 0; j + i < cols_; ++i) f(j + i, block[i]);
      }
    }
  }

  // Writes f(column) instead.
  template <class F>
  LRC_INLINE void write(const F& f) const {
    for (int64_t j = 0; j < cols_; j += kLane) {
      Vec<T> block[kLane];
      if (j + kLane <= cols_) {
#pragma GCC unroll 16
        for (int i = 0; i < kLane; ++i) block[i] = f(j + i);
      } else {
        for (int i = 0; i < kLane; ++i) block[i] = j + i < cols_ ? f(j + i) : Vec<T>{};
      }
      put(j, block);
    }
  }

 private:
  static constexpr int kLane = kLanes<T>;

  LRC_INLINE Vec<T> column(int64_t j) const {
    if (load_.whole_outer(first_, j, kLane) == kLane) return load_.template outer<T, false>(first_, j);
    return load_.template outer<T, true>(first_, j);
  }

  // block[i]: column j + i.
  LRC_INLINE void read(int64_t j, Vec<T> (&block)[kLane]) const {
    if (first_ + kLane <= load_.outer_size && j + kLane <= cols_) {
#pragma GCC unroll 16
      for (int i = 0; i < kLane; ++i) block[i] = load_.template depth<T, false>(first_ + i, j);
    } else {
      for (int i = 0; i < kLane; ++i) block[i] = load_.template depth<T, true>(first_ + i, j);
    }
    transpose(block);
  }

  LRC_INLINE void put(int64_t j, Vec<T> (&block)[kLane]) const {
    const int64_t rows = smaller(kLane, load_.outer_size - first_), cols = smaller(kLane, cols_ - j);
    S* const to = const_cast<S*>(load_.at(first_, j));
    if (load_.depth_stride == 1) {
      transpose(block);
      if (rows == kLane) {
#pragma GCC unroll 16
        for (int i = 0; i < kLane; ++i) put_line(to + i * load_.outer_stride, 1, block[i], cols);
        return;
      }
      for (int64_t i = 0; i < rows; ++i) put_line(to + i * load_.outer_stride, 1, block[i], cols);
    } else {
      for (int64_t i = 0; i < cols; ++i) put_line(to + i * load_.depth_stride, load_.outer_stride, block[i], rows);
    }
  }

  static LRC_INLINE void put_line(S* to, int64_t step, const Vec<T>& v, int64_t count) {
    if (std::is_same_v<S, T> && step == 1 && count == kLane) return store_bits(to, v);
    T line[kLane];
    store_bits(line, v);
    if (step == 1 && count == kLane) {
      for (int64_t i = 0; i < kLane; ++i) to[i] = Store<S>::from(line[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i * step] = Store<S>::from(line[i]);
    }
  }

  StridedLoad<S> load_;
  int64_t first_, cols_;
};

}  // namespace
}  // namespace lowrank::LRC_LEVEL
