// gemm: dense products on one micro-kernel, with the loads and the epilogue that the families plug in.
//
//   C <- alpha * A B + beta * C        A [m, k], B [k, n], C [m, n], any strides, any mix of storage types
//
// Accumulation is float64 where C is float64, else float32. Math::kBFloat16 rounds float32 operands to bfloat16
// once (ties to even) and multiplies those with float32 accumulation; it is ignored where C is float64. Neither operand
// may overlap C. Empty k gives beta * C; beta == 0 never reads C. Tier D1: the partition and the order of sums depend
// on the shape only.
#pragma once

#include "lowrank_core/view.h"

namespace lowrank {

enum class Math : uint8_t { kFloat32, kBFloat16 };

struct GemmOptions {
  double alpha = 1.0;
  double beta = 0.0;
  Math math = Math::kFloat32;
};

void gemm(const Matrix& c, const Matrix& a, const Matrix& b, const GemmOptions& options = {});

// G <- Yᵀ Y, both triangles written, symmetric to the bit. y [m, n], g [n, n].
void gram(const Matrix& g, const Matrix& y, const GemmOptions& options = {});

}  // namespace lowrank
