// subspace_step_sketched: Adafactor with a momentum that is kept as a random sketch of itself (Flora), for a list of
// weights, without any temporary of a weight's size; and Adafactor of low-rank gradients.
//
//   x = G over the root of Adafactor's second moment            R = Pᵀ x   [r, n]
//   y = (1 - b1) x + b1 P C     C <- b1 C + (1 - b1) R          C before the step in y
//   W <- (1 - lr weight_decay) W - lr y / max(1, rms(y) / threshold)
//
// P [m, r] has independent normal entries. With a_i and b_j the factors that G is multiplied by, R is (diag(a) P)ᵀ G
// diag(b), and y is one product and one pass over G. |y|² comes from |x|², <R, C> and <Pᵀ P, C Cᵀ>.
// Sources: Hao, Cao, Mou 2024 (Flora, arXiv 2402.03293), algorithm 2; Shazeer, Stern 2018 (Adafactor, 1804.04235).
#pragma once

#include <cstdint>
#include <vector>

#include "lowrank_core/subspace_step.h"

namespace lowrank::subspace_step {

// ---- mathematics -------------------------------------------------------------------------------------------------

// A mean of g² + eps² over the `count` entries of a line, from the sum of their squares, as it moves. Adafactor,
// algorithm 4.
LRC_HD double moved_mean(double kept, double decay, double squares, double count, double eps) {
  return kept * decay + (squares / count + eps * eps) * (1.0 - decay);
}

// 1 over the root of a mean. Where that is below `least`, so is the gradient.
LRC_HD double over_root(double mean, double least) {
  const double by = root(mean);
  return 1.0 / (by > least ? by : least);
}

// |y|² of y = rest x + P D, from the squared norms of x and P D and <Pᵀ x, D>.
LRC_HD double joined_square(double rest, double x, double both, double lifted) {
  const double squared = rest * rest * x + 2.0 * rest * both + lifted;
  return squared > 0.0 ? squared : 0.0;
}

// What a direction of `count` entries is divided by, so that its root mean square is at most `threshold`.
LRC_HD double clip_divisor(double squared, double count, double threshold) {
  const double ratio = root(squared / count) / threshold;
  return ratio > 1.0 ? ratio : 1.0;
}

// ---- entry points ------------------------------------------------------------------------------------------------

// A job of a step, with Adafactor's means over the rows and the columns of the weight as the user sees it. `low` is
// memory for R.
struct SketchJob : Job {
  float *row_means, *col_means;
  double decay;  // of the means in this step
};

struct SketchParams {
  Params step;  // its eps is that of the means
  double threshold = 1.0;
};

// A low-rank gradient with Adafactor's means over its rows and columns, stored as moments are.
struct FactoredJob {
  Matrix low;  // rows along memory; float32, or float64 with means of its own
  Moment rows, cols;
  int64_t step;   // its number, from 1
  uint64_t seed;  // of its draws
  double decay;   // of the means in this step
};

// low <- its direction by Adafactor: over the root of the second moment, clipped to a root mean square of `threshold`.
// The means move. Tier D1; draws as update_cpu does.
void factored_cpu(const std::vector<FactoredJob>& jobs, double eps, double threshold);

// The step of every weight. Tier D1; draws as update_cpu does.
void sketched_cpu(const std::vector<SketchJob>& jobs, const SketchParams& params);

}  // namespace lowrank::subspace_step
