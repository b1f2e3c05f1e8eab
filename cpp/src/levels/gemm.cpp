// Dense products: plain arrays in, alpha and beta out. The product itself is cpp/src/levels/gemm_nest.cpp.
#include <cstdlib>

#include "lowrank_core/simd/gemm_dense.h"
#include "lowrank_core/simd/pack.h"

namespace lowrank::LRC_LEVEL {
namespace {

union AnyDense {
  Dense<float> float32;
  Dense<double> float64;
  Dense<bfloat16> brain16;
  Dense<float16> half16;
};

template <class P, class T>
Operand describe(Dense<T>& dense, const Matrix& m) {
  const bool depth_major = std::abs(m.col_stride) < std::abs(m.row_stride);
  dense = {m.as<T>(), m.rows, m.cols, m.row_stride, m.col_stride, depth_major};
  return operand<P>(dense);
}

// The operand whose outer direction is the rows of `m`; `dense` has to outlive it.
template <class P>
Operand describe(AnyDense& dense, const Matrix& m) {
  switch (m.dtype) {
    case DType::kFloat64:
      return describe<P>(dense.float64, m);
    case DType::kBFloat16:
      return describe<P>(dense.brain16, m);
    case DType::kFloat16:
      return describe<P>(dense.half16, m);
    default:
      return describe<P>(dense.float32, m);
  }
}

Operand describe(Arithmetic arithmetic, AnyDense& dense, const Matrix& m) {
  switch (arithmetic) {
    case Arithmetic::kFloat64:
      return describe<Plain<double>>(dense, m);
    case Arithmetic::kRounded:
      return describe<Rounded>(dense, m);
#if defined(__AVX512BF16__)
    case Arithmetic::kPairs:
      return describe<Pairs>(dense, m);
#endif
    default:
      return describe<Plain<float>>(dense, m);
  }
}

struct Store {
  Matrix c;
  double alpha, beta;
  bool symmetric;
};

// One row or column of a tile, `step` apart in it, to `count` elements of C.
template <class T, class Acc>
void store_line(const Acc* sums, int64_t step, T* to, int64_t to_step, int count, Acc alpha, Acc beta) {
  if (beta == 0) {
    for (int j = 0; j < count; ++j) to[j * to_step] = lowrank::Store<T>::from(alpha * sums[j * step]);
  } else {
    for (int j = 0; j < count; ++j) {
      T& c = to[j * to_step];
      c = lowrank::Store<T>::from(alpha * sums[j * step] + beta * Acc(to_float(c)));
    }
  }
}

template <class T, class Acc>
void store_tile(const void* self, const void* finished) {
  const Store& store = *static_cast<const Store*>(self);
  const auto& tile = *static_cast<const Tile<Acc>*>(finished);
  const Matrix& c = store.c;
  const Acc alpha = Acc(store.alpha), beta = Acc(store.beta);
  T* const corner = c.as<T>() + tile.row * c.row_stride + tile.col * c.col_stride;
  if (c.col_stride == 1) {
    for (int i = 0; i < tile.rows; ++i) {
      store_line(tile[i], 1, corner + i * c.row_stride, 1, tile.cols, alpha, beta);
    }
  } else {
    for (int j = 0; j < tile.cols; ++j) {
      store_line(tile[0] + j, tile.stride, corner + j * c.col_stride, c.row_stride, tile.rows, alpha, beta);
    }
  }
}

Epilogue epilogue(const Store& store) {
  switch (store.c.dtype) {
    case DType::kFloat64:
      return {&store, store_tile<double, double>, nullptr};
    case DType::kBFloat16:
      return {&store, store_tile<bfloat16, float>, nullptr};
    case DType::kFloat16:
      return {&store, store_tile<float16, float>, nullptr};
    default:
      return {&store, store_tile<float, float>, nullptr};
  }
}

}  // namespace

void gemm_dense(const DenseProduct& p) {
  AnyDense a, b;
  const Store store{p.c, p.alpha, p.beta, p.symmetric};
  const Product product{p.c.rows,
                        p.c.cols,
                        p.a.cols,
                        describe(p.arithmetic, a, p.a),
                        describe(p.arithmetic, b, p.b.transposed()),
                        epilogue(store)};
  multiply(p.arithmetic, product);
}

}  // namespace lowrank::LRC_LEVEL
