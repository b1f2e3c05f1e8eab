// subspace_step_lines: weights that step along their whole gradient, whose rows or columns are brought to a root mean
// square of 1.
//
//   W <- (1 - lr weight_decay) W - lr scale N       N = diag(r) G diag(c)
//
//   lines     r and c
//   none      1: the step is along G                                                          Muon, with its own G
//   rows      r_i = 1 / rms(row i of G), c = 1                                                SCALE
//   columns   c_j = 1 / rms(column j of G), r = 1                                             SCALE, embeddings
//   both      r, then c, of what the other has made of G, in turns                            SinkGD
//
// Only the factors change from turn to turn: no matrix is written before the weight. A line of zeros keeps a factor
// of 1. Sources: Glentis et al. 2025 (SCALE, arXiv 2506.16659), algorithm 1; Scetbon et al. 2025 (SinkGD, 2502.06742),
// algorithm 3.
#pragma once

#include <cstdint>
#include <vector>

#include "lowrank_core/subspace_step.h"

namespace lowrank::subspace_step {

// ---- mathematics -------------------------------------------------------------------------------------------------

// The power of two that takes a line whose largest magnitude is `peak` into [1, 2), so that squares neither overflow
// nor vanish; at the ends of float32's range as near to it as there are such numbers.
LRC_HD float line_scale(float peak) {
  const int32_t exponent = int32_t(magnitude_bits(peak) >> 23), inverse = 254 - exponent;
  return bits_float(uint32_t(inverse < 1 ? 1 : inverse) << 23);
}

// 1 / the mean of `count` squares with the sum `sum`; 1 for a line of zeros.
LRC_HD double line_factor(double sum, double count) { return sum > 0.0 ? count / sum : 1.0; }

// An entry of diag(r) G diag(c), each factor a scale times a root: their products may leave the range of numbers.
template <class T>
LRC_HD T line_entry(T g, T row_scale, T row_root, T column_scale, T column_root) {
  return g * row_scale * column_scale * row_root * column_root;
}

// ---- entry points ------------------------------------------------------------------------------------------------

enum class Lines : uint8_t { kNone, kRows, kColumns, kBoth };

// One weight [m, n] that is no float64, and its gradient, whose rows run along memory.
struct LinesJob {
  Matrix w, g;
  double scale;
  int64_t step;   // its number, from 1
  uint64_t seed;  // of its draws
};

struct LinesParams {
  Lines lines = Lines::kBoth;
  int iterations = 1;  // turns of `both`
  double lr = 1e-3, weight_decay = 0.0;
  bool maximize = false, stochastic = false;
};

// Every weight of the list. An entry below 1e-19 times the largest one of its row counts as zero in sums of `both` and
// `rows`. Tier D1; draws as update_cpu does.
void lines_cpu(const std::vector<LinesJob>& jobs, const LinesParams& params);

}  // namespace lowrank::subspace_step
