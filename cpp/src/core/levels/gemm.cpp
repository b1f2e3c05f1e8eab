// Products of plain arrays: strided loads in, alpha and beta out. The product itself is in nest.cpp.
#include "core/gemm_level.h"
#include "lowrank_core/simd/dense_load.h"

namespace lowrank::LRC_LEVEL {
namespace {

// ---- epilogues ---------------------------------------------------------------------------------------------------

template <class Acc>
Scaling<Acc> scaling(const DenseProduct& p) {
  return {Acc(p.alpha), Acc(p.beta)};
}

// `count` sums, `sum_step` apart, to elements of C, `to_step` apart.
template <class T, class Acc>
void store_line(const Acc* sums, int64_t sum_step, T* to, int64_t to_step, int count, Scaling<Acc> scale) {
  for (int j = 0; j < count; ++j) to[j * to_step] = Store<T>::from(scale(sums[j * sum_step], to[j * to_step]));
}

template <class T, class Acc>
void store(const void* self, const void* finished) {
  const auto& p = *static_cast<const DenseProduct*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  const Matrix c = p.c.block(tile.row, tile.col, tile.rows, tile.cols);
  const Scaling<Acc> scale = scaling<Acc>(p);
  if (c.col_stride == 1) {  // a unit step that the compiler knows is what lets it use vectors
    for (int i = 0; i < tile.rows; ++i) store_line(tile[i], 1, c.as<T>() + i * c.row_stride, 1, tile.cols, scale);
  } else {
    for (int j = 0; j < tile.cols; ++j) {
      store_line(tile[0] + j, tile.stride, c.as<T>() + j * c.col_stride, c.row_stride, tile.rows, scale);
    }
  }
}

// Every sum on or above the diagonal to both of its places.
template <class T, class Acc>
void store_symmetric(const void* self, const void* finished) {
  const auto& p = *static_cast<const DenseProduct*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  const Scaling<Acc> scale = scaling<Acc>(p);
  for (int i = 0; i < tile.rows; ++i) {
    const int64_t row = tile.row + i;
    for (int64_t col = tile.col < row ? row : tile.col; col < tile.col + tile.cols; ++col) {
      T* const upper = p.c.as<T>() + row * p.c.row_stride + col * p.c.col_stride;
      T* const lower = p.c.as<T>() + col * p.c.row_stride + row * p.c.col_stride;
      *upper = *lower = Store<T>::from(scale(tile[i][col - tile.col], *upper));
    }
  }
}

bool touches_upper_triangle(const void*, int64_t row, int64_t col, int cols) { return col + cols > row; }

template <class T, class Acc>
Epilogue epilogue(const DenseProduct& p) {
  if (p.symmetric) return {&p, store_symmetric<T, Acc>, touches_upper_triangle};
  return {&p, store<T, Acc>, nullptr};
}

Epilogue describe_epilogue(const DenseProduct& p) {
  switch (p.c.dtype) {
    case DType::kFloat64:
      return epilogue<double, double>(p);
    case DType::kBFloat16:
      return epilogue<bfloat16, float>(p);
    case DType::kFloat16:
      return epilogue<float16, float>(p);
    default:
      return epilogue<float, float>(p);
  }
}

void dense_product(const DenseProduct& p) {
  AnyLoad a, b;
  const Operand left = describe(p.arithmetic, a, p.a), right = describe(p.arithmetic, b, p.b.transposed());
  multiply(p.arithmetic, {p.c.rows, p.c.cols, p.a.cols, left, right, describe_epilogue(p)});
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const GemmLevel GemmLevel::LRC_LEVEL = {LRC_LEVEL::dense_product};

}  // namespace lowrank
