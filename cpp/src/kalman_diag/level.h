// level: what the family asks of an instruction-set level. A run of parameters is worked through by chunks, whose part
// of the Jacobian is widened to float64 into `scratch`, where it stays in the cache until it is used up.
#pragma once

#include "lowrank_core/isa.h"
#include "lowrank_core/kalman_diag.h"

namespace lowrank::kalman_diag {

constexpr int64_t kRowTile = 4;  // rows of a tile at every level: matrices of m rows are padded with zeros to these
constexpr int64_t kAlign = 32;   // parameters that a chunk is padded to with zeros

// Parameters [begin, end) of a block; `chunk`, a multiple of kAlign, is the length of a row of scratch.
struct Run {
  int64_t begin, end;
  double* scratch;
  int64_t chunk;
};

// inverse: L⁻¹ [padded, padded], zero beyond m; w [m]
struct Update {
  int64_t outputs, padded;
  const double* inverse;
  const double* w;
  double rate;
};

// Rows of scratch that the two kinds of pass need for `padded` rows of the Jacobian.
constexpr int64_t gram_rows(int64_t padded) { return padded + 1; }
constexpr int64_t update_rows(int64_t padded) { return padded + 3; }
constexpr int64_t gain_rows(int64_t padded) { return 2 * padded + 1; }

struct Level {
  // gram [padded, padded] += X diag(p) Xᵀ of the run, in its lower triangle; X is jac, and below it score if it has
  // data
  void (*gram)(double* gram, int64_t padded, const Block& block, const Run& run);
  void (*update)(const Update& update, const Block& block, const Run& run);
  // k <- diag(p) jacᵀ inverse, inverse [padded, padded] of S
  void (*gain)(const Matrix& k, const double* inverse, int64_t padded, const Block& block, const Run& run);

  static const Level generic, avx2, avx512, avx512bf16;
};
inline const Level& level() { return at_level<Level>(); }

}  // namespace lowrank::kalman_diag
