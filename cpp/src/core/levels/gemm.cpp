// Products of plain arrays: strided loads in, alpha and beta out. The product itself is in nest.cpp.
#include "core/gemm_level.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/dense_load.h"
#include "lowrank_core/simd/tile_store.h"

namespace lowrank::LRC_LEVEL {
namespace {

// ---- epilogues ---------------------------------------------------------------------------------------------------

template <class Acc>
Scaling<Acc> scaling(const DenseProduct& p) {
  return {Acc(p.alpha), Acc(p.beta)};
}

template <class T, class Acc>
void store(const void* self, const void* finished) {
  const auto& p = *static_cast<const DenseProduct*>(self);
  store_tile<T>(p.c, p.plus, *static_cast<const Tile<Acc>*>(finished), scaling<Acc>(p));
}

// Every sum on or above the diagonal to both of its places.
template <class T, class Acc>
void store_symmetric(const void* self, const void* finished) {
  const auto& p = *static_cast<const DenseProduct*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  const int64_t end = tile.col + tile.cols;
  for (int i = 0; i < tile.rows; ++i) {
    const int64_t row = tile.row + i, first = larger(row, tile.col);
    if (first >= end) break;
    const Matrix c = p.c.block(row, first, 1, end - first), plus = p.plus.block(row, first, 1, end - first);
    const Acc* const sums = tile[i] + (first - tile.col);
    if (c.col_stride == 1 && plus.col_stride == 1) {
      store_sums(sums, 1, c.as<T>(), 1, plus.as<T>(), 1, c.cols, scaling<Acc>(p));
    } else {
      store_sums(sums, 1, c.as<T>(), c.col_stride, plus.as<T>(), plus.col_stride, c.cols, scaling<Acc>(p));
    }
  }
  for (int64_t col = larger(tile.row, tile.col); col < end; ++col) {
    const int64_t rows = smaller(tile.rows, col + 1 - tile.row);
    const T* const upper = p.c.as<T>() + tile.row * p.c.row_stride + col * p.c.col_stride;
    T* const lower = p.c.as<T>() + col * p.c.row_stride + tile.row * p.c.col_stride;
    for (int64_t i = 0; i < rows; ++i) lower[i * p.c.col_stride] = upper[i * p.c.row_stride];
  }
}

bool touches_upper_triangle(const void*, int64_t row, int64_t col, int cols) { return col + cols > row; }

Epilogue epilogue(const DenseProduct& p) {
  return with_float_type(p.c.dtype, [&](auto tag) -> Epilogue {
    using T = decltype(tag);
    if (p.symmetric) return {&p, store_symmetric<T, accumulator_t<T>>, touches_upper_triangle};
    return {&p, store<T, accumulator_t<T>>, nullptr};
  });
}

void dense_product(const DenseProduct& p) {
  AnyLoad a, b;
  const Operand left = describe(p.arithmetic, a, p.a), right = describe(p.arithmetic, b, p.b.transposed());
  multiply(p.arithmetic, {p.c.rows, p.c.cols, p.a.cols, left, right, epilogue(p)});
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const GemmLevel GemmLevel::LRC_LEVEL = {LRC_LEVEL::dense_product};

}  // namespace lowrank
