// tile_store: what most epilogues do, a finished tile into a matrix of any floating dtype and strides.
#pragma once

#include "lowrank_core/simd/nest.h"
#include "lowrank_core/simd/vec.h"
#include "lowrank_core/view.h"

namespace lowrank::LRC_LEVEL {
namespace {

// `count` sums, `sum_step` apart, with `old` numbers to elements of C, rounded once.
template <class T, class Acc, class Value>
void store_sums(const Acc* sums, int64_t sum_step, T* to, int64_t to_step, const T* old, int64_t old_step,
                int64_t count, Value value) {
  for (int64_t j = 0; j < count; ++j) to[j * to_step] = Store<T>::from(value(sums[j * sum_step], old[j * old_step]));
}

// The tile's part of C <- value(sum, plus), plus of the dtype of C. `value` is a copy, which the stores into C cannot
// change for all that the compiler knows.
template <class T, class Acc, class Value>
void store_tile(const Matrix& whole, const Matrix& plus, const Tile<Acc>& tile, Value value) {
  const Matrix c = whole.block(tile.row, tile.col, tile.rows, tile.cols);
  const Matrix p = plus.block(tile.row, tile.col, tile.rows, tile.cols);
  if (c.col_stride == 1 && p.col_stride == 1) {  // a unit step that the compiler knows is what lets it use vectors
    for (int i = 0; i < tile.rows; ++i) {
      store_sums(tile[i], 1, c.as<T>() + i * c.row_stride, 1, p.as<T>() + i * p.row_stride, 1, tile.cols, value);
    }
  } else {
    for (int j = 0; j < tile.cols; ++j) {
      store_sums(tile[0] + j, tile.stride, c.as<T>() + j * c.col_stride, c.row_stride, p.as<T>() + j * p.col_stride,
                 p.row_stride, tile.rows, value);
    }
  }
}
// With what is there in C.
template <class T, class Acc, class Value>
void store_tile(const Matrix& whole, const Tile<Acc>& tile, Value value) {
  store_tile<T>(whole, whole, tile, value);
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
