// newton_schulz: the nearest orthogonal matrix, roughly, for a list of matrices.
//
//   X <- Y / max(|Y|_F, eps), then X <- a X + (b A + c A²) X with A = X Xᵀ, `steps` times
//
// A is that of the shorter side. Singular values end near 1, where they were not tiny beside |Y|_F. Where bfloat16
// products are faster, X, A and b A + c A² are rounded to bfloat16 and sums are float32: the terms of the polynomial
// nearly cancel, so all of them see the same rounded numbers. Source: Jordan et al. 2024 (Muon,
// kellerjordan.github.io/posts/muon). Tier D1.
#pragma once

#include <array>
#include <vector>

#include "lowrank_core/view.h"

namespace lowrank {

struct NewtonSchulz {
  std::array<double, 3> coefficients;  // a, b, c
  int steps;
  double eps;
};

// `to` and `from` [m, n] share no memory; `to` is float32 or float64, `from` any floating dtype.
struct NewtonSchulzJob {
  Matrix to, from;
};

void newton_schulz(const std::vector<NewtonSchulzJob>& jobs, const NewtonSchulz& iteration);

}  // namespace lowrank
