// dense_load: an array of any floating dtype and strides as an operand of the nest.
#pragma once

#include "lowrank_core/simd/pack.h"
#include "lowrank_core/simd/strided_load.h"
#include "lowrank_core/view.h"

namespace lowrank::LRC_LEVEL {
namespace {

union AnyLoad {
  StridedLoad<float> float32;
  StridedLoad<double> float64;
  StridedLoad<bfloat16> brain16;
  StridedLoad<float16> half16;
};

LRC_INLINE int64_t distance(int64_t stride) { return stride < 0 ? -stride : stride; }

template <class P, class T>
Operand describe(StridedLoad<T>& load, const Matrix& m) {
  const bool depth_major = distance(m.col_stride) < distance(m.row_stride);  // the nearer neighbour
  load = {m.as<T>(), m.rows, m.cols, m.row_stride, m.col_stride, depth_major};
  return operand<P>(load);
}

// An operand whose lines are the rows of `m`; `load` has to outlive it.
template <class P>
Operand describe(AnyLoad& load, const Matrix& m) {
  switch (m.dtype) {
    case DType::kFloat64:
      return describe<P>(load.float64, m);
    case DType::kBFloat16:
      return describe<P>(load.brain16, m);
    case DType::kFloat16:
      return describe<P>(load.half16, m);
    default:
      return describe<P>(load.float32, m);
  }
}

inline Operand describe(Arithmetic arithmetic, AnyLoad& load, const Matrix& m) {
  switch (arithmetic) {
    case Arithmetic::kFloat64:
      return describe<Plain<double>>(load, m);
    case Arithmetic::kRounded:
      return describe<Rounded>(load, m);
#if defined(__AVX512BF16__)
    case Arithmetic::kPairs:
    case Arithmetic::kTiles:
      return describe<Pairs>(load, m);
#endif
    default:
      return describe<Plain<float>>(load, m);
  }
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
