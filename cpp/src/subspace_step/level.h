// level: what the family asks of an instruction-set level.
#pragma once

#include "lowrank_core/isa.h"
#include "lowrank_core/simd/nest.h"
#include "lowrank_core/subspace_step.h"
#include "lowrank_core/subspace_step_lines.h"
#include "lowrank_core/subspace_step_plain.h"
#include "lowrank_core/subspace_step_selected.h"

namespace lowrank::subspace_step {

constexpr int64_t kChunk = 64 * blockwise::kBlock;  // elements that one task advances

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

// A weight [m, n] whose rows run along memory, and what is drawn where it is bfloat16 and rounded stochastically.
struct Target {
  Matrix w;
  bool transposed = false;  // w is the transpose of the weight that the user sees
  bool stochastic = false;
  uint64_t seed = 0;
  int64_t number = 0;  // of the step
};

// w <- keep w - step (left right), left [m, k], right [k, n], k >= 0.
struct WriteBack {
  Target to;
  Matrix left, right;
  double keep = 1.0, step = 0.0;
  Arithmetic arithmetic = Arithmetic::kFloat32;
};

// A gradient that a residual is made of; `sign` multiplies it.
struct Gradient {
  Matrix g;
  double sign = 1.0;
};

// Less (row_i g_ij) col_j; either gains may be missing. They are of the working dtype.
struct ScaledWriteBack : WriteBack {
  Gradient gradient;
  const void* row_gains = nullptr;
  const void* col_gains = nullptr;
};

// Less gain sign_above(g_ij - (left other)_ij, threshold). One operand is pairs of lines, one of `right` (or `left`)
// for step, one of `other`: see paired_lines.
struct SignWriteBack : WriteBack {
  Gradient gradient;
  double gain = 0.0, threshold = 0.0;
  bool rows_paired = false;
};

// A matrix whose lines are balanced, x_ij = scale_i g_ij, and reciprocals of mean squares: of row i with columns by
// their factors, of column j with rows by theirs.
struct Balance {
  Matrix g;
  float* scales;   // [m]
  float* rows;     // [m]
  float* columns;  // [n]
  bool first;      // the scales are to be found
};

// w <- keep w - step line_entry(g, ...), with arrays of a factor for each row and each column.
struct LinesWriteBack {
  Target to;
  Matrix g;
  double keep = 1.0, step = 0.0;
  const float *row_scales, *row_roots, *column_scales, *column_roots;
};

struct MomentLevel {
  // Elements [begin, end); begin is a multiple of the codecs' block.
  void (*advance)(const Advance& a, int64_t begin, int64_t end);
  // The same of the codecs alone; `values` are those of these elements.
  void (*encode)(const Moment& to, const float* values, int64_t begin, int64_t end, int64_t size, bool second,
                 uint64_t seed, int64_t step);
  void (*decode)(float* values, const Moment& from, int64_t begin, int64_t end, bool second);
  bool (*finite)(const void* x, DType dtype, int64_t n);

  static const MomentLevel generic, avx2, avx512, avx512bf16;
};

struct PlainLevel {
  // Elements [begin, end) of a weight that is not projected; begin is a multiple of the codecs' block.
  void (*step)(const PlainJob& job, const PlainParams& params, int64_t begin, int64_t end);
  // The same of moments, with the directions in the place of weights; job.w is of the working dtype.
  void (*direct)(const PlainJob& job, const PlainParams& params, int64_t begin, int64_t end);

  static const PlainLevel generic, avx2, avx512, avx512bf16;
};

struct LinesLevel {
  // The factors of rows [begin, end) from those of the columns. With `sums` [n]: sums[j] += factor_i x_ij² over them.
  void (*balance_rows)(const Balance& b, int64_t begin, int64_t end, float* sums);
  // The factors of the columns from the sums of `count` blocks of rows, [count, n].
  void (*balance_columns)(const Balance& b, const float* sums, int64_t count);
  // Rows [begin, end) of the weight.
  void (*write)(const LinesWriteBack& p, int64_t begin, int64_t end);

  static const LinesLevel generic, avx2, avx512, avx512bf16;
};

struct SelectedLevel {
  // Rows [begin, end) of the weight, of the dtype that it is stepped in: with the `directions` [end - begin, width] of
  // its columns, or of these rows whole; or, if null, along signs alone.
  void (*write)(const SelectedJob& job, const SelectedParams& params, int64_t begin, int64_t end,
                const void* directions);
  // to [end - begin, count] <- those columns of the gradient.
  void (*gather)(const SelectedJob& job, int64_t begin, int64_t end, void* to);

  static const SelectedLevel generic, avx2, avx512, avx512bf16;
};

struct WeightLevel {
  void (*write_back)(const WriteBack& product);
  void (*write_back_scaled)(const ScaledWriteBack& product);
  void (*write_back_sign)(const SignWriteBack& product);
  // w <- from [m, n], as a write-back rounds
  void (*round)(const Target& to, const Matrix& from);
  // How many lines of each of two operands alternate, as rows or columns of a product, so that a tile holds both.
  int64_t (*paired_lines)(bool rows, Arithmetic arithmetic);
  // sums[j] += squares of column j
  void (*add_column_squares)(double* sums, const Matrix& x);
  // rows[i] and cols[j] += squares of row i and column j
  void (*add_squares)(double* rows, double* cols, const Matrix& x);
  // Sum of rows[i] cols[j] x_ij²
  double (*weighted_squares)(const double* rows, const double* cols, const Matrix& x);

  static const WeightLevel generic, avx2, avx512, avx512bf16;
};

inline const MomentLevel& moment_level() { return at_level<MomentLevel>(); }
inline const PlainLevel& plain_level() { return at_level<PlainLevel>(); }
inline const LinesLevel& lines_level() { return at_level<LinesLevel>(); }
inline const SelectedLevel& selected_level() { return at_level<SelectedLevel>(); }
inline const WeightLevel& weight_level() { return at_level<WeightLevel>(); }

}  // namespace lowrank::subspace_step
