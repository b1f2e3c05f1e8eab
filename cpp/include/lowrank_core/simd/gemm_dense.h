// gemm_dense: what cpp/src/gemm.cpp asks of a level.
#pragma once

#include "lowrank_core/gemm.h"
#include "lowrank_core/isa.h"
#include "lowrank_core/simd/nest.h"
#include "lowrank_core/view.h"

namespace lowrank {

// c <- alpha * a b + beta * c. With `symmetric`, which needs b = aᵀ, only the tiles that touch the upper triangle are
// computed and each sum is written to both of its places.
struct DenseProduct {
  Matrix c, a, b;
  double alpha, beta;
  Arithmetic arithmetic;
  bool symmetric;
};

// How products into a matrix of dtype `c` are multiplied.
Arithmetic arithmetic_for(DType c, Math math);

LRC_DECLARE_AT_LEVELS(void gemm_dense(const DenseProduct& product))

}  // namespace lowrank
