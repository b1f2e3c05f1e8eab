// gemm_level: what gemm.cpp asks of an instruction-set level.
#pragma once

#include "lowrank_core/isa.h"
#include "lowrank_core/simd/nest.h"
#include "lowrank_core/view.h"

namespace lowrank {

// c <- alpha * a b + beta * plus, of the dtype of c and perhaps c itself. With `symmetric`, which needs b = aᵀ, only
// the tiles that touch the upper triangle are computed and each sum is written to both of its places.
struct DenseProduct {
  Matrix c, a, b;
  double alpha, beta;
  Arithmetic arithmetic;
  bool symmetric;
  Matrix plus;
};

struct GemmLevel {
  void (*multiply)(const DenseProduct& product);

  static const GemmLevel generic, avx2, avx512, avx512bf16;
};

// The product in its better orientation.
void multiply(const DenseProduct& product);

}  // namespace lowrank
