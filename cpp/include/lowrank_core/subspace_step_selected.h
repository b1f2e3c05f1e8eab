// subspace_step_selected: weights of which some rows or columns are stepped by Adam, and the rest by its sign.
//
//   W <- (1 - lr weight_decay) W - lr D       D = scale N on the lines that are selected, sign_scale sign(G) elsewhere
//
// N is Adam of the gradient's entries there, with moments of these lines alone. All operations are those of torch, one
// by one, as in subspace_step_plain.h. Source: Zmushko et al. 2024 (FRUGAL, arXiv 2411.07837).
#pragma once

#include <cstdint>
#include <vector>

#include "lowrank_core/subspace_step_plain.h"

namespace lowrank::subspace_step {

// ---- mathematics -------------------------------------------------------------------------------------------------

// w.mul_(keep).sub_(d, alpha=lr), whose product and sum torch rounds once where its vectors have such an instruction.
template <bool kFused, class T>
LRC_HD T less_direction(T keep, T w, T lr, T d) {
  return product_and_sum<kFused>(-lr, d, w * keep);
}

// ---- entry points ------------------------------------------------------------------------------------------------

// One weight [m, n] and its gradient, of any strides.
struct SelectedJob {
  Matrix w, g;
  const int64_t* lines;       // in ascending order
  int64_t count;              // of them; 0: signs alone
  bool rows;                  // they are rows, else columns
  Moment first, second;       // [count, n] or [m, count]
  double correction1, root2;  // 1 - beta1^t, sqrt(1 - beta2^t)
  int64_t step;               // its number, from 1
  uint64_t seed;              // of its draws
};

struct SelectedParams {
  PlainParams adam;
  double sign_scale = 1.0;
};

// Every weight of the list. Tier D1; draws as update_cpu does.
void selected_cpu(const std::vector<SelectedJob>& jobs, const SelectedParams& params);

}  // namespace lowrank::subspace_step
