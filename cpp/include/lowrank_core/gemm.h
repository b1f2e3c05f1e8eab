// gemm: dense products on one micro-kernel, with the loads and the epilogue that the families plug in.
//
//   C <- alpha * A B + beta * C        A [m, k], B [k, n], C [m, n], any strides, any mix of storage types
//
// Accumulation is float64 where C is float64, else float32, and C is rounded once. Math::kBFloat16 rounds the operands
// to bfloat16 once (ties to even) and multiplies those with float32 accumulation; it is ignored where C is float64.
// Neither operand may overlap C. Empty k gives beta * C; beta == 0 never reads C.
// Error: |C - exact| <= gamma |alpha| |A| |B| + the rounding of C, elementwise, gamma = (k + 2) u, u = 2^-24 or 2^-53.
// Tier D1: the partition and the order of sums depend on shapes and strides only.
// Throws Error for a dtype that is not a float type and for shapes that do not match.
#pragma once

#include "lowrank_core/view.h"

namespace lowrank {

enum class Math : uint8_t { kFloat32, kBFloat16 };

struct GemmOptions {
  double alpha = 1.0;
  double beta = 0.0;
  Math math = Math::kFloat32;
};

// Whether Math::kBFloat16 multiplies faster than kFloat32 here. Where it does not it still rounds, and what it saves is
// the memory traffic of operands that are stored in bfloat16.
bool has_fast_bfloat16();

// Whether Cᵀ = Bᵀ Aᵀ is the better product.
bool better_transposed(const Matrix& c);

// What alpha * sum + beta * c comes to in the accumulation type, before its one rounding.
template <class Acc>
struct Scaling {
  Acc alpha, beta;

  template <class T>
  LRC_HD Acc operator()(Acc sum, const T& c) const {
    return beta == 0 ? alpha * sum : alpha * sum + beta * Acc(to_float(c));  // beta == 0 does not read C
  }
};

void gemm(const Matrix& c, const Matrix& a, const Matrix& b, const GemmOptions& options = {});

// G <- alpha Yᵀ Y + beta G, both triangles written, symmetric to the bit; of G only the upper triangle is read.
// y [m, n], g [n, n].
void gram(const Matrix& g, const Matrix& y, const GemmOptions& options = {});

}  // namespace lowrank
