// The epilogue that puts a product into the weights, and what else reads weights and gradients line by line.
#include "subspace_step/level.h"

#include "lowrank_core/dense.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/dense_load.h"
#include "lowrank_core/simd/philox.h"

namespace lowrank::LRC_LEVEL {
namespace {

using subspace_step::Lift;
using subspace_step::Residual;
using namespace blockwise;

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
void store_stochastic(const Lift& p, const float* values, int64_t row, int64_t col, int count) {
  uint32_t words[kLongestLine > kWordsAtOnce ? kLongestLine : kWordsAtOnce];
  if (count > kLongestLine) __builtin_unreachable();  // or GCC 12 warns of a longer one
  const auto place = [&](int j) {
    return subspace_step::weight_draw(row, col + j, p.w.rows, p.w.cols, p.transposed, p.number);
  };
  if (p.transposed) {
    for (int j = 0; j < count; ++j) words[j] = philox::bits(p.seed, place(j));
  } else {
    draw_words(words, count, p.seed, place(0));  // neighbours
  }
  bfloat16* to = p.w.as<bfloat16>() + row * p.w.row_stride + col * p.w.col_stride;
  for (int j = 0; j < count; ++j) to[j * p.w.col_stride] = to_bfloat16(values[j], words[j]);
}

// One line of the weight; `sums`: its products, `others`: those that a sign is of.
template <class T, class Acc, Residual kResidual>
void finish_line(const Lift& p, int64_t row, int64_t col, const Acc* sums, const Acc* others, int count) {
  Acc w[kLongestLine], g[kLongestLine], gains[kLongestLine];
  T* const to = p.w.as<T>() + row * p.w.row_stride + col * p.w.col_stride;
  load_line(w, to, p.w.col_stride, count);
  const Acc keep = Acc(p.keep), step = Acc(p.step), gain = Acc(p.gain), threshold = Acc(p.threshold);
  if constexpr (kResidual != Residual::kDrop) {
    load_line(g, p.g, row, col, count);
    for (int j = 0; j < count; ++j) g[j] *= Acc(p.g_sign);
  }
  if constexpr (kResidual == Residual::kScaled) {
    const Acc* from = static_cast<const Acc*>(p.gains);
    for (int j = 0; j < count; ++j) gains[j] = p.gain_by_row ? from[row] : from[col + j];
  }
  for (int j = 0; j < count; ++j) {
    Acc next = subspace_step::write_back(keep, w[j], step, sums[j]);
    if constexpr (kResidual == Residual::kScaled) next = subspace_step::less_scaled(next, gains[j], g[j]);
    if constexpr (kResidual == Residual::kSign) {
      next = subspace_step::less_sign(next, gain, g[j], others[j], threshold);
    }
    w[j] = next;
  }
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (p.stochastic) return store_stochastic(p, w, row, col, count);
  }
  store_line(to, p.w.col_stride, w, count);
}

template <class T, class Acc, Residual kResidual>
void finish(const void* self, const void* finished) {
  const auto& p = *static_cast<const Lift*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  for (int i = 0; i < tile.rows; ++i) {
    finish_line<T, Acc, kResidual>(p, tile.row + i, tile.col, tile[i], nullptr, tile.cols);
  }
}

// Half of the tile's columns, or rows, are of the other product.
template <class T, class Acc>
void finish_sign(const void* self, const void* finished) {
  const auto& p = *static_cast<const Lift*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  if (p.rows_paired) {
    const int half = tile.rows / 2, rows = int(smaller(half, p.w.rows - tile.row / 2));
    for (int i = 0; i < rows; ++i) {
      finish_line<T, Acc, Residual::kSign>(p, tile.row / 2 + i, tile.col, tile[i], tile[half + i], tile.cols);
    }
  } else {
    const int half = tile.cols / 2, cols = int(smaller(half, p.w.cols - tile.col / 2));
    for (int i = 0; i < tile.rows; ++i) {
      finish_line<T, Acc, Residual::kSign>(p, tile.row + i, tile.col / 2, tile[i], tile[i] + half, cols);
    }
  }
}

Ahead ahead(const void* self, int64_t row, int64_t col, int rows, int cols) {
  const Matrix& w = static_cast<const Lift*>(self)->w;
  const int64_t item = item_size(w.dtype);
  if (w.col_stride != 1) return {};
  return {static_cast<const char*>(w.data) + (row * w.row_stride + col) * item, rows, cols * item, w.row_stride * item};
}

template <class T, class Acc>
Epilogue epilogue(const Lift& p) {
  switch (p.residual) {
    case Residual::kDrop:
      return {&p, finish<T, Acc, Residual::kDrop>, nullptr, ahead};
    case Residual::kSign:
      return {&p, finish_sign<T, Acc>};
    default:
      return {&p, finish<T, Acc, Residual::kScaled>, nullptr, ahead};
  }
}

Epilogue epilogue(const Lift& p) {
  return with_float_type(p.w.dtype, [&](auto tag) {
    using T = decltype(tag);
    return epilogue<T, accumulator_t<T>>(p);
  });
}

template <class T>
void round_lines(const Lift& p, const Matrix& from) {
  for (int64_t i = 0; i < p.w.rows; ++i) {
    for (int64_t j = 0; j < p.w.cols; j += kLongestLine) {
      const int count = int(smaller(kLongestLine, p.w.cols - j));
      accumulator_t<T> line[kLongestLine];
      load_line(line, from, i, j, count);
      if constexpr (std::is_same_v<T, bfloat16>) {
        if (p.stochastic) {
          store_stochastic(p, line, i, j, count);
          continue;
        }
      }
      store_line(p.w.as<T>() + i * p.w.row_stride + j * p.w.col_stride, p.w.col_stride, line, count);
    }
  }
}

void lift_product(const Lift& p) {
  AnyLoad a, b;
  const Operand left = describe(p.arithmetic, a, p.left), right = describe(p.arithmetic, b, p.right.transposed());
  multiply(p.arithmetic, {p.left.rows, p.right.cols, p.left.cols, left, right, epilogue(p)});
}

int64_t paired_lines(bool rows, DType dtype) {
  const int lane = dtype == DType::kFloat64 ? kLanes<double> : kLanes<float>;
  return rows ? kRows / 2 : kColumnVectors * lane / 2;
}

void round_matrix(const Lift& to, const Matrix& from) {
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
    .lift = LRC_LEVEL::lift_product,
    .round = LRC_LEVEL::round_matrix,
    .paired_lines = LRC_LEVEL::paired_lines,
    .add_column_squares = LRC_LEVEL::add_column_squares,
};

}  // namespace lowrank
