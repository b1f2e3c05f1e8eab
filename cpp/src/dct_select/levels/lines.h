// lines: the identity's coordinates, which are the numbers themselves, added up along memory.
//
// The order of every sum is that of rows that go through a transform (rows.cpp), one in each lane: the bits are the
// same for every layout and for atoms that happen to be unit vectors.
#pragma once

#include "dct_select/level.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

using dct_select::RowJob;

constexpr int64_t kPanel = 256;               // numbers of a line that are held at a time, a multiple of kRowSums
constexpr int64_t kRowSums = kLanes<double>;  // partial sums of one coordinate, to which rows go in turns

template <class T, class S>
LRC_INLINE Vec<T> load_some(const S* from, int64_t count) {
  return count >= kLanes<T> ? load<T>(from) : load_first<T>(from, count);
}

template <class T, class S>
LRC_INLINE void store_some(S* to, const Vec<T>& v, int64_t count) {
  if constexpr (std::is_same_v<S, T>) {
    if (count >= kLanes<T>) return store_bits(to, v);
  }
  T numbers[kLanes<T>];
  store_bits(numbers, v);
  if (count >= kLanes<T>) {
    for (int64_t i = 0; i < kLanes<T>; ++i) to[i] = Store<S>::from(numbers[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = Store<S>::from(numbers[i]);
  }
}

// sum[i] <- sum[i] + f(x[i]) as float64 vectors.
template <class T, class F>
LRC_INLINE void add_each(double* sum, const T* x, int64_t count, const F& f) {
  for (int64_t k = 0; k < count; k += kLanes<double>) {
    store_bits(sum + k, f(load_bits<Vec<double>>(sum + k), load<double>(x + k)));
  }
}
// The same of all of x, added to kRowSums sums in turns.
template <class T, class F>
LRC_INLINE void add_along(double* sums, const T* x, int64_t count, const F& f) {
  auto sum = load_bits<Vec<double>>(sums);
  for (int64_t k = 0; k < count; k += kLanes<double>) sum = f(sum, load<double>(x + k));
  store_bits(sums, sum);
}

LRC_INLINE Vec<double> plus_square(const Vec<double>& sum, const Vec<double>& x) { return multiply_add(x, x, sum); }
LRC_INLINE Vec<double> plus_magnitude(const Vec<double>& sum, const Vec<double>& x) { return sum + (x < 0 ? -x : x); }

// Rows in parts of `each`, all of whose lines run along memory.
template <class T>
class Lines {
 public:
  Lines(const RowJob<T>& job, int64_t each, bool along_rows) : job_(job), each_(each), along_rows_(along_rows) {}

  void run() { along_rows_ ? by_rows() : by_columns(); }

 private:
  void by_rows() {
    double squares[kRowSums][kPanel], magnitudes[kRowSums][kPanel];
    for (int64_t j = 0; j < job_.in.cols; j += kPanel) {
      const int64_t cols = smaller(kPanel, job_.in.cols - j);
      for (int64_t begin = job_.begin; begin < job_.end; begin += each_) {
        memset(squares, 0, sizeof squares);
        if (job_.magnitudes) memset(magnitudes, 0, sizeof magnitudes);
        const int64_t end = smaller(job_.end, begin + each_);
        for (int64_t i = begin; i < end; ++i) {
          take(i, j, cols);
          const int64_t at = (i - begin) % kRowSums;
          add_each(squares[at], numbers_, cols, plus_square);
          if (job_.magnitudes) add_each(magnitudes[at], numbers_, cols, plus_magnitude);
        }
        fold<kPanel>(&squares[0][0], cols, job_.squares + j);
        if (job_.magnitudes) fold<kPanel>(&magnitudes[0][0], cols, job_.magnitudes + j);
      }
    }
  }

  void by_columns() {
    for (int64_t k = 0; k < job_.in.cols; ++k) {
      for (int64_t begin = job_.begin; begin < job_.end; begin += each_) {
        double squares[kRowSums] = {}, magnitudes[kRowSums] = {};
        const int64_t end = smaller(job_.end, begin + each_);
        for (int64_t i = begin; i < end; i += kPanel) {
          const int64_t rows = smaller(kPanel, end - i);
          take(k, i, rows);
          add_along(squares, numbers_, rows, plus_square);
          if (job_.magnitudes) add_along(magnitudes, numbers_, rows, plus_magnitude);
        }
        fold<1>(squares, 1, job_.squares + k);
        if (job_.magnitudes) fold<1>(magnitudes, 1, job_.magnitudes + k);
      }
    }
  }

  // numbers_ <- `count` numbers of a line of memory, times the scale, plus the residual, which they become.
  LRC_INLINE void take(int64_t line, int64_t first, int64_t count) {
    T* const numbers = numbers_;
    const Vec<T> scale = broadcast(T(job_.scale));
    with_float_type(job_.in.dtype, [&](auto tag) {
      const auto* const from = at<decltype(tag)>(job_.in, line, first);
      for (int64_t k = 0; k < count; k += kLanes<T>) store_bits(numbers + k, load_some<T>(from + k, count - k) * scale);
    });
    if (!job_.residual.data) return;
    with_float_type(job_.residual.dtype, [&](auto tag) {
      auto* const held = at<decltype(tag)>(job_.residual, line, first);
      for (int64_t k = 0; k < count; k += kLanes<T>) {
        const Vec<T> sum = load_bits<Vec<T>>(numbers + k) + load_some<T>(held + k, count - k);
        store_bits(numbers + k, sum);
        store_some<T>(held + k, sum, count - k);
      }
    });
  }

  template <class S>
  LRC_INLINE S* at(const Matrix& m, int64_t line, int64_t first) const {
    return m.as<S>() + line * (along_rows_ ? m.row_stride : m.col_stride) + first;
  }

  // to[k] <- to[k] + the sum of the kRowSums parts of k, which are kStride apart.
  template <int64_t kStride>
  static void fold(double* parts, int64_t count, double* to) {
    for (int64_t width = kRowSums / 2; width > 0; width /= 2) {
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t k = 0; k < count; ++k) parts[i * kStride + k] += parts[(i + width) * kStride + k];
      }
    }
    for (int64_t k = 0; k < count; ++k) to[k] += parts[k];
  }

  const RowJob<T>& job_;
  const int64_t each_;
  const bool along_rows_;
  T numbers_[kPanel];  // zeros beyond the end of a line, as far as a vector reads
};

template <class T>
void add_lines(const RowJob<T>& job, int64_t each, bool along_rows) {
  Lines<T>(job, each, along_rows).run();
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
