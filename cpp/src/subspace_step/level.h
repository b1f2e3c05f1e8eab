// level: what the family asks of an instruction-set level.
#pragma once

#include "lowrank_core/isa.h"
#include "lowrank_core/simd/nest.h"
#include "lowrank_core/subspace_step.h"

namespace lowrank::subspace_step {

// The moments and the direction of a run of elements of `low`, whose place it takes.
struct Advance {
  Rule rule;
  double beta1, beta2, eps;
  int64_t step;
  void* low;
  DType dtype;
  int64_t size;
  Moment first, second;
  uint64_t seed;
};

// w [m, n], whose rows run along memory, <- keep w - step (left right) - S with left [m, k], right [k, n], k >= 0, and
//   kScaled   S_ij = gain_j g_ij, or gain_i g_ij with gain_by_row
//   kSign     S_ij = gain sign_above(g_ij - (left other)_ij, threshold)
// For kSign one operand is pairs of lines instead, one of `right` (or `left`) for step, one of `other`: see
// paired_lines.
struct Lift {
  Matrix w, left, right, g;
  double keep, step, g_sign;  // g_sign multiplies g
  Residual residual;
  const void* gains;  // of the working dtype
  bool gain_by_row;
  double gain, threshold;
  bool stochastic, transposed;
  uint64_t seed;
  int64_t number;  // of the step
  bool rows_paired;
  Arithmetic arithmetic;
};

template <class T>
struct CheckFunctions {
  bool (*finite)(const T* x, int64_t n);
};

struct MomentLevel {
  // Elements [begin, end); begin is a multiple of the codecs' block.
  void (*advance)(const Advance& a, int64_t begin, int64_t end);
  void (*encode)(const Moment& to, const float* values, int64_t begin, int64_t end, int64_t size, bool second,
                 uint64_t seed, int64_t step);
  void (*decode)(float* values, const Moment& from, int64_t begin, int64_t end, bool second);
  ByType<CheckFunctions> checks;

  static const MomentLevel generic, avx2, avx512, avx512bf16;
};

struct WeightLevel {
  void (*lift)(const Lift& lift);
  // w <- from [m, n], as `lift` rounds
  void (*round)(const Lift& to, const Matrix& from);
  // How many lines of each of two operands alternate, as rows or columns of a product, so that a tile holds both.
  int64_t (*paired_lines)(bool rows, DType dtype);
  // sums[j] += squares of column j
  void (*add_column_squares)(double* sums, const Matrix& x);

  static const WeightLevel generic, avx2, avx512, avx512bf16;
};

inline const MomentLevel& moment_level() { return at_level<MomentLevel>(); }
inline const WeightLevel& weight_level() { return at_level<WeightLevel>(); }

}  // namespace lowrank::subspace_step
