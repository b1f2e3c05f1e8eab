// The epilogue that puts a product into the weights, and what else reads weights and gradients line by line.
#include "subspace_step/level.h"

#include "lowrank_core/dense.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/dense_load.h"
#include "subspace_step/levels/squares.h"
#include "subspace_step/target_line.h"

namespace lowrank::LRC_LEVEL {
namespace {

using namespace subspace_step;

// ---- the epilogue ------------------------------------------------------------------------------------------------

// One line of the weight, by its sums; `less(j, count, value)` takes the residual off the part at j. Wherever it can
// `count` is a constant, and no part asks again how its memory lies.
template <class T, class Acc, class Less>
LRC_INLINE void finish_line(const WriteBack& p, int64_t row, int64_t col, const Acc* sums, int count,
                            const uint32_t* words, const Less& less) {
  const Matrix& m = p.to.w;
  T* const line = m.as<T>() + row * m.row_stride + col * m.col_stride;
  const Vec<Acc> keep = broadcast(Acc(p.keep)), step = broadcast(Acc(p.step));
  const auto part = [&](int j, int some, int64_t apart) LRC_INLINE_LAMBDA {
    T* const at = line + j * apart;
    const Vec<Acc> w = load_part<Acc>(at, apart, some), sum = load_bits<Vec<Acc>>(sums + j);
    store_part<T, Acc>(at, apart, less(j, some, write_back(keep, w, step, sum)), some, words ? words + j : words);
  };
  int j = 0;
  if (m.col_stride == 1) {
    for (; j + kPart<Acc> <= count; j += kPart<Acc>) part(j, kPart<Acc>, 1);
  }
  for (; j < count; j += kPart<Acc>) part(j, part_at<Acc>(j, count), m.col_stride);
}

template <class Acc>
LRC_INLINE Vec<Acc> load_gradient(const Gradient& from, int64_t row, int64_t col, int count) {
  return load_part<Acc>(from.g, row, col, count) * broadcast(Acc(from.sign));
}

template <class T, class Acc>
void finish(const void* self, const void* finished) {
  const auto& p = *static_cast<const WriteBack*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  for_each_line<T>(p.to, tile.row, tile.col, tile.rows, tile.cols, [&](int i, const uint32_t* words) {
    finish_line<T>(p, tile.row + i, tile.col, tile[i], tile.cols, words,
                   [](int, int, const Vec<Acc>& value) { return value; });
  });
}

// `G`: of the gradient's elements.
template <class T, class G, class Acc>
LRC_INLINE void finish_scaled_from(const ScaledWriteBack& p, const Tile<Acc>& tile) {
  const Matrix& gradient = p.gradient.g;
  const Vec<Acc> sign = broadcast(Acc(p.gradient.sign));
  const auto* const row_gains = static_cast<const Acc*>(p.row_gains);
  const auto* const col_gains = static_cast<const Acc*>(p.col_gains);
  for_each_line<T>(p.to, tile.row, tile.col, tile.rows, tile.cols, [&](int i, const uint32_t* words) {
    const int64_t row = tile.row + i, apart = gradient.col_stride;
    const G* const from = gradient.as<G>() + row * gradient.row_stride + tile.col * apart;
    const auto less = [&](int j, int count, const Vec<Acc>& value) LRC_INLINE_LAMBDA {
      const Vec<Acc> g = load_part<Acc>(from + j * apart, apart, count) * sign;
      if (!col_gains) return less_scaled(value, broadcast(row_gains[row]), g);
      const Vec<Acc> gain = load_part<Acc>(col_gains + tile.col + j, 1, count);
      if (!row_gains) return less_scaled(value, gain, g);
      const Vec<Acc> of_row = broadcast(row_gains[row]);  // the gain of the weight's row first, in every layout
      return p.to.transposed ? less_scaled(value, of_row, gain * g) : less_scaled(value, gain, of_row * g);
    };
    finish_line<T>(p, row, tile.col, tile[i], tile.cols, words, less);
  });
}

template <class T, class Acc>
void finish_scaled(const void* self, const void* finished) {
  const auto& p = *static_cast<const ScaledWriteBack*>(self);
  with_float_type(p.gradient.g.dtype,
                  [&](auto tag) { finish_scaled_from<T, decltype(tag)>(p, *static_cast<const Tile<Acc>*>(finished)); });
}

// `others`: the products that the sign is of.
template <class T, class Acc>
LRC_INLINE void finish_sign_line(const SignWriteBack& p, int64_t row, int64_t col, const Acc* sums, const Acc* others,
                                 int count, const uint32_t* words) {
  const Vec<Acc> gain = broadcast(Acc(p.gain)), threshold = broadcast(Acc(p.threshold));
  finish_line<T>(p, row, col, sums, count, words, [&](int j, int some, const Vec<Acc>& value) {
    const Vec<Acc> g = load_gradient<Acc>(p.gradient, row, col + j, some);
    return less_sign(value, gain, g, load_bits<Vec<Acc>>(others + j), threshold);
  });
}

// Half of the tile's columns, or rows, are of the other product.
template <class T, class Acc>
void finish_sign(const void* self, const void* finished) {
  const auto& p = *static_cast<const SignWriteBack*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  if (p.rows_paired) {
    const int half = tile.rows / 2, rows = int(smaller(half, p.to.w.rows - tile.row / 2));
    for_each_line<T>(p.to, tile.row / 2, tile.col, rows, tile.cols, [&](int i, const uint32_t* words) {
      finish_sign_line<T>(p, tile.row / 2 + i, tile.col, tile[i], tile[half + i], tile.cols, words);
    });
  } else {
    const int half = tile.cols / 2, cols = int(smaller(half, p.to.w.cols - tile.col / 2));
    for_each_line<T>(p.to, tile.row, tile.col / 2, tile.rows, cols, [&](int i, const uint32_t* words) {
      finish_sign_line<T>(p, tile.row + i, tile.col / 2, tile[i], tile[i] + half, cols, words);
    });
  }
}

// A tile of `x`, unless its lines do not run along memory.
Ahead tile_ahead(const Matrix& x, int64_t row, int64_t col, int rows, int cols) {
  const int64_t item = item_size(x.dtype);
  if (x.col_stride != 1) return {};
  return {static_cast<const char*>(x.data) + (row * x.row_stride + col) * item, rows, cols * item, x.row_stride * item};
}
template <class Job>
Ahead ahead(const void* self, int64_t row, int64_t col, int rows, int cols) {
  return tile_ahead(static_cast<const Job*>(self)->to.w, row, col, rows, cols);
}
Ahead gradient_ahead(const void* self, int64_t row, int64_t col, int rows, int cols) {
  return tile_ahead(static_cast<const ScaledWriteBack*>(self)->gradient.g, row, col, rows, cols);
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
    return {&p, finish_scaled<T, accumulator_t<T>>, nullptr, ahead<ScaledWriteBack>, gradient_ahead};
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
  using Acc = accumulator_t<T>;
  const Matrix& w = to.w;
  for (int64_t i = 0; i < w.rows; i += kRows) {
    for (int64_t j = 0; j < w.cols; j += kLongestLine) {
      const int rows = int(smaller(kRows, w.rows - i)), cols = int(smaller(kLongestLine, w.cols - j));
      for_each_line<T>(to, i, j, rows, cols, [&](int line, const uint32_t* words) {
        T* const at = w.as<T>() + (i + line) * w.row_stride + j * w.col_stride;
        for (int k = 0; k < cols; k += kPart<Acc>) {
          const int some = part_at<Acc>(k, cols);
          const Vec<Acc> values = load_part<Acc>(from, i + line, j + k, some);
          store_part<T, Acc>(at + k * w.col_stride, w.col_stride, values, some, words ? words + k : words);
        }
      });
    }
  }
}

template <class Job>
void multiply_into(const Job& p) {
  AnyLoad a, b;
  const Operand left = describe(p.arithmetic, a, p.left), right = describe(p.arithmetic, b, p.right.transposed());
  multiply(p.arithmetic, {p.left.rows, p.right.cols, p.left.cols, left, right, epilogue(p)});
}

constexpr int64_t kLinesAtOnce = 4, kLinesOfTask = 32;

LRC_INLINE void fetch(const Ahead& ahead) {
  for (int64_t run = 0; run < ahead.runs; ++run) {
    for (int64_t at = 0; at < ahead.bytes; at += 64) __builtin_prefetch(ahead.data + run * ahead.stride + at);
  }
}

// Without a product: a few lines of the weight from end to end, for that is how prefetchers expect memory to be read,
// and with them the first look at the next few, where pages end.
template <class T>
void scale_lines(const void* self, int64_t task) {
  using Acc = accumulator_t<T>;
  constexpr Acc sums[kLongestLine] = {};
  const auto& p = *static_cast<const ScaledWriteBack*>(self);
  const Matrix& w = p.to.w;
  const int64_t end = smaller((task + 1) * kLinesOfTask, w.rows);
  for (int64_t row = task * kLinesOfTask; row < end; row += kLinesAtOnce) {
    const int rows = int(smaller(kLinesAtOnce, end - row));
    const int64_t next = row + rows;
    for (int64_t col = 0; col < w.cols; col += kLongestLine) {
      const int cols = int(smaller(kLongestLine, w.cols - col)), more = int(smaller(rows, end - next));
      fetch(tile_ahead(w, next, col, more, cols));
      fetch(tile_ahead(p.gradient.g, next, col, more, cols));
      const Tile<Acc> tile{sums, row, col, rows, cols, 0};
      finish_scaled<T, Acc>(self, &tile);
    }
  }
}

void write_back_scaled(const ScaledWriteBack& p) {
  if (p.left.cols > 0) return multiply_into(p);
  const int64_t tasks = (p.to.w.rows + kLinesOfTask - 1) / kLinesOfTask;
  with_float_type(p.to.w.dtype, [&](auto tag) { for_each_task(tasks, scale_lines<decltype(tag)>, &p); });
}

int64_t paired_lines(bool rows, Arithmetic arithmetic) {
  return (rows ? rows_of_tile(arithmetic) : columns_of_tile(arithmetic)) / 2;
}

void round_matrix(const Target& to, const Matrix& from) {
  with_float_type(to.w.dtype, [&](auto tag) { round_lines<decltype(tag)>(to, from); });
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const subspace_step::WeightLevel subspace_step::WeightLevel::LRC_LEVEL = {
    .write_back = LRC_LEVEL::multiply_into<subspace_step::WriteBack>,
    .write_back_scaled = LRC_LEVEL::write_back_scaled,
    .write_back_sign = LRC_LEVEL::multiply_into<subspace_step::SignWriteBack>,
    .round = LRC_LEVEL::round_matrix,
    .paired_lines = LRC_LEVEL::paired_lines,
    .add_column_squares = LRC_LEVEL::add_column_squares,
    .add_squares = LRC_LEVEL::add_squares,
    .weighted_squares = LRC_LEVEL::weighted_squares,
};

}  // namespace lowrank
