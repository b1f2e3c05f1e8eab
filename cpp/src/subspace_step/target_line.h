// target_line: a line of a weight as vectors of the level, and the words by which it is rounded. For level files.
#pragma once

#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/pack.h"
#include "lowrank_core/simd/philox.h"
#include "subspace_step/level.h"

// LRC_INLINE of a lambda.
#define LRC_INLINE_LAMBDA __attribute__((always_inline))

namespace lowrank::LRC_LEVEL {
namespace {

using namespace subspace_step;

// ---- parts of a line ---------------------------------------------------------------------------------------------

// A line is taken in parts of a vector; `count` tells how many entries of a part there are, fewer only in the last one.
template <class Acc>
constexpr int kPart = kLanes<Acc>;
template <class Acc>
LRC_INLINE int part_at(int j, int count) {
  return count - j < kPart<Acc> ? count - j : kPart<Acc>;
}

template <class Acc, class T>
LRC_INLINE Vec<Acc> load_part(const T* from, int64_t step, int count) {
  if (step == 1) return count == kPart<Acc> ? load<Acc>(from) : load_first<Acc>(from, count);
  Acc some[kPart<Acc>] = {};
  for (int j = 0; j < count; ++j) some[j] = Acc(to_float(from[j * step]));
  return load_bits<Vec<Acc>>(some);
}

// Of row i of `m` from column j on.
template <class Acc>
LRC_INLINE Vec<Acc> load_part(const Matrix& m, int64_t i, int64_t j, int count) {
  const int64_t at = i * m.row_stride + j * m.col_stride;
  return with_float_type(m.dtype,
                         [&](auto tag) { return load_part<Acc>(m.as<decltype(tag)>() + at, m.col_stride, count); });
}

// Rounds once; `words`, of the entries, are null except for bfloat16 that is rounded stochastically.
template <class T, class Acc>
LRC_INLINE void store_part(T* to, int64_t step, const Vec<Acc>& values, int count, const uint32_t* words) {
  if constexpr (std::is_same_v<T, bfloat16> && std::is_same_v<Acc, float>) {
    const auto rounded = words ? round_to_bfloat16(values, load_bits<Vec<uint32_t>>(words)) : round_to_bfloat16(values);
    bfloat16 some[kPart<float>];
    bfloat16* const whole = step == 1 && count == kPart<float> ? to : some;
    store_bits(whole, upper_halves(rounded));
    if (whole == some) {
      for (int j = 0; j < count; ++j) to[j * step] = some[j];
    }
  } else {
    if (std::is_same_v<T, Acc> && step == 1 && count == kPart<Acc>) return store_bits(to, values);
    Acc some[kPart<Acc>];
    store_bits(some, values);
    for (int j = 0; j < count; ++j) to[j * step] = Store<T>::from(some[j]);
  }
}

// ---- words -------------------------------------------------------------------------------------------------------

constexpr int kLongestLine = kColumnVectors * kLanes<float>;

// Elements of the weight as the user sees it, row by row: what a word is drawn for.
LRC_INLINE void draw_line(uint32_t* words, const Target& to, int64_t row, int64_t col, int count) {
  const auto place = [&](int j) { return weight_draw(row, col + j, to.w.rows, to.w.cols, to.transposed, to.number); };
  if (to.transposed) {
    for (int j = 0; j < count; ++j) words[j] = philox::bits(to.seed, place(j));
  } else {
    draw_words(words, count, to.seed, place(0));  // neighbours
  }
}

// Of `rows` lines of `count` entries, kLongestLine words apart.
LRC_INLINE void draw_rows(uint32_t* words, const Target& to, int64_t row, int64_t col, int rows, int count) {
  if (!to.transposed && count == kLongestLine && to.w.cols % 4 == 0 && col % 4 == 0) {
    const philox::Position first = weight_draw(row, col, to.w.rows, to.w.cols, false, to.number);
    return draw_lines(words, rows, to.w.cols, to.seed, first);
  }
  for (int i = 0; i < rows; ++i) draw_line(words + i * kLongestLine, to, row + i, col, count);
}

// Calls line(i, words) for each of the `rows` lines of a weight's tile at (row, col), with the words to round it by.
template <class T, class Line>
LRC_INLINE void for_each_line(const Target& to, int64_t row, int64_t col, int rows, int count, const Line& line) {
  constexpr int together = 8;  // lines whose words are drawn together; a tile of AMX has 32
  uint32_t words[std::is_same_v<T, bfloat16> ? together * kLongestLine : 1];
  const bool drawn = std::is_same_v<T, bfloat16> && to.stochastic;
  for (int i = 0; i < rows; ++i) {
    if (drawn && i % together == 0) {
      draw_rows(words, to, row + i, col, int(smaller(together, rows - i)), count);
    }
    line(i, drawn ? words + i % together * kLongestLine : nullptr);
  }
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
