// The epilogue that puts a product into the weights, and what else reads weights and gradients line by line.
#include "subspace_step/level.h"

#include "lowrank_core/dense.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/dense_load.h"
#include "lowrank_core/simd/philox.h"

namespace lowrank::LRC_LEVEL {
namespace {

using namespace subspace_step;

// ---- lines of any dtype ------------------------------------------------------------------------------------------

template <class Acc, class T>
LRC_INLINE void load_line(Acc* to, const T* from, int64_t step, int count) {
  if (step == 1) {
    for (int j = 0; j < count; ++j) to[j] = Acc(to_float(from[j]));
  } else {
    for (int j = 0; j < count; ++j) to[j] = Acc(to_float(from[j * step]));
  }
}

// `count` elements of row i of `m` from column j on.
template <class Acc>
void load_line(Acc* to, const Matrix& m, int64_t i, int64_t j, int count) {
  const int64_t at = i * m.row_stride + j * m.col_stride;
  with_float_type(m.dtype, [&](auto tag) { load_line(to, m.as<decltype(tag)>() + at, m.col_stride, count); });
}

// ---- the epilogue ------------------------------------------------------------------------------------------------

constexpr int kLongestLine = kColumnVectors * kLanes<float>;

template <class T, class Acc>
void store_line(T* to, int64_t step, const Acc* values, int count) {
  if (step == 1) {
    for (int j = 0; j < count; ++j) to[j] = Store<T>::from(values[j]);
  } else {
    for (int j = 0; j < count; ++j) to[j * step] = Store<T>::from(values[j]);
  }
}

// Elements of the weight as the user sees it, row by row: what a word is drawn for.
void store_stochastic(const Target& p, const float* values, int64_t row, int64_t col, int count) {
  uint32_t words[kLongestLine > kWordsAtOnce ? kLongestLine : kWordsAtOnce];
  if (count > kLongestLine) __builtin_unreachable();  // or GCC 12 warns of a longer one
  const auto place = [&](int j) { return weight_draw(row, col + j, p.w.rows, p.w.cols, p.transposed, p.number); };
  if (p.transposed) {
    for (int j = 0; j < count; ++j) words[j] = philox::bits(p.seed, place(j));
  } else {
    draw_words(words, count, p.seed, place(0));  // neighbours
  }
  bfloat16* to = p.w.as<bfloat16>() + row * p.w.row_stride + col * p.w.col_stride;
  for (int j = 0; j < count; ++j) to[j * p.w.col_stride] = to_bfloat16(values[j], words[j]);
}

template <class T, class Acc>
LRC_INLINE void store(const Target& to, const Acc* values, int64_t row, int64_t col, int count) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (to.stochastic) return store_stochastic(to, values, row, col, count);
  }
  store_line(to.w.as<T>() + row * to.w.row_stride + col * to.w.col_stride, to.w.col_stride, values, count);
}

// One line of the weight, by its sums; `less(j, value)` takes the residual off entry j.
template <class T, class Acc, class Less>
LRC_INLINE void finish_line(const WriteBack& p, int64_t row, int64_t col, const Acc* sums, int count,
                            const Less& less) {
  const Matrix& m = p.to.w;
  Acc w[kLongestLine];
  load_line(w, m.as<T>() + row * m.row_stride + col * m.col_stride, m.col_stride, count);
  const Acc keep = Acc(p.keep), step = Acc(p.step);
  for (int j = 0; j < count; ++j) w[j] = less(j, write_back(keep, w[j], step, sums[j]));
  store<T>(p.to, w, row, col, count);
}

template <class Acc>
LRC_INLINE void load_gradient(Acc* g, const Gradient& from, int64_t row, int64_t col, int count) {
  load_line(g, from.g, row, col, count);
  for (int j = 0; j < count; ++j) g[j] *= Acc(from.sign);
}

template <class T, class Acc>
void finish(const void* self, const void* finished) {
  const auto& p = *static_cast<const WriteBack*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  for (int i = 0; i < tile.rows; ++i) {
    finish_line<T>(p, tile.row + i, tile.col, tile[i], tile.cols, [](int, Acc value) { return value; });
  }
}

template <class T, class Acc>
void finish_scaled(const void* self, const void* finished) {
  const auto& p = *static_cast<const ScaledWriteBack*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  const Acc* const from = static_cast<const Acc*>(p.gains);
  for (int i = 0; i < tile.rows; ++i) {
    Acc g[kLongestLine], gains[kLongestLine];
    const int64_t row = tile.row + i;
    load_gradient(g, p.gradient, row, tile.col, tile.cols);
    for (int j = 0; j < tile.cols; ++j) gains[j] = p.gain_by_row ? from[row] : from[tile.col + j];
    finish_line<T>(p, row, tile.col, tile[i], tile.cols,
                   [&](int j, Acc value) { return less_scaled(value, gains[j], g[j]); });
  }
}

// `others`: the products that the sign is of.
template <class T, class Acc>
LRC_INLINE void finish_sign_line(const SignWriteBack& p, int64_t row, int64_t col, const Acc* sums, const Acc* others,
                                 int count) {
  Acc g[kLongestLine];
  load_gradient(g, p.gradient, row, col, count);
  const Acc gain = Acc(p.gain), threshold = Acc(p.threshold);
  finish_line<T>(p, row, col, sums, count,
                 [&](int j, Acc value) { return less_sign(value, gain, g[j], others[j], threshold); });
}

// Half of the tile's columns, or rows, are of the other product.
template <class T, class Acc>
void finish_sign(const void* self, const void* finished) {
  const auto& p = *static_cast<const SignWriteBack*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  if (p.rows_paired) {
    const int half = tile.rows / 2, rows = int(smaller(half, p.to.w.rows - tile.row / 2));
    for (int i = 0; i < rows; ++i) {
      finish_sign_line<T>(p, tile.row / 2 + i, tile.col, tile[i], tile[half + i], tile.cols);
    }
  } else {
    const int half = tile.cols / 2, cols = int(smaller(half, p.to.w.cols - tile.col / 2));
    for (int i = 0; i < tile.rows; ++i) {
      finish_sign_line<T>(p, tile.row + i, tile.col / 2, tile[i], tile[i] + half, cols);
    }
  }
}

template <class Job>
Ahead ahead(const void* self, int64_t row, int64_t col, int rows, int cols) {
  const Matrix& w = static_cast<const Job*>(self)->to.w;
  const int64_t item = item_size(w.dtype);
  if (w.col_stride != 1) return {};
  return {static_cast<const char*>(w.data) + (row * w.row_stride + col) * item, rows, cols * item, w.row_stride * item};
}

Epilogue epilogue(const WriteBack& p) {
  return with_float_type(p.to.w.dtype, [&](auto tag) -> Epilogue {
    using T = decltype(tag);
    return {&p, finish<T, accumulator_t<T>>, nullptr, ahead<WriteBack>};
  });
}
Epilogue epilogue(const ScaledWriteBack& p) {
  return with_float_type(p.to.w.dtype, [&](auto tag) -> Epilogue {
    using T = decltype(tag);
    return {&p, finish_scaled<T, accumulator_t<T>>, nullptr, ahead<ScaledWriteBack>};
  });
}
Epilogue epilogue(const SignWriteBack& p) {
  return with_float_type(p.to.w.dtype, [&](auto tag) -> Epilogue {
    using T = decltype(tag);
    return {&p, finish_sign<T, accumulator_t<T>>};
  });
}

template <class T>
void round_lines(const Target& to, const Matrix& from) {
  for (int64_t i = 0; i < to.w.rows; ++i) {
    for (int64_t j = 0; j < to.w.cols; j += kLongestLine) {
      const int count = int(smaller(kLongestLine, to.w.cols - j));
      accumulator_t<T> line[kLongestLine];
      load_line(line, from, i, j, count);
      store<T>(to, line, i, j, count);
    }
  }
}

template <class Job>
void multiply_into(const Job& p) {
  AnyLoad a, b;
  const Operand left = describe(p.arithmetic, a, p.left), right = describe(p.arithmetic, b, p.right.transposed());
  multiply(p.arithmetic, {p.left.rows, p.right.cols, p.left.cols, left, right, epilogue(p)});
}

int64_t paired_lines(bool rows, Arithmetic arithmetic) {
  return (rows ? rows_of_tile(arithmetic) : columns_of_tile(arithmetic)) / 2;
}

void round_matrix(const Target& to, const Matrix& from) {
  with_float_type(to.w.dtype, [&](auto tag) { round_lines<decltype(tag)>(to, from); });
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

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const subspace_step::WeightLevel subspace_step::WeightLevel::LRC_LEVEL = {
    .write_back = LRC_LEVEL::multiply_into<subspace_step::WriteBack>,
    .write_back_scaled = LRC_LEVEL::multiply_into<subspace_step::ScaledWriteBack>,
    .write_back_sign = LRC_LEVEL::multiply_into<subspace_step::SignWriteBack>,
    .round = LRC_LEVEL::round_matrix,
    .paired_lines = LRC_LEVEL::paired_lines,
    .add_column_squares = LRC_LEVEL::add_column_squares,
};

}  // namespace lowrank
