// subspace_step_plain: weights that are not projected, and the check of gradients before a step.
#pragma once

#include <math.h>

#include <cstdint>
#include <vector>

#include "lowrank_core/roots.h"
#include "lowrank_core/subspace_step.h"

namespace lowrank::subspace_step {

// ---- mathematics -------------------------------------------------------------------------------------------------

// Adam operation by operation as torch.optim.AdamW's loop over single tensors takes it, so that a step has its bits:
//
//   m.lerp_(g, 1 - beta1)    v.mul_(beta2).addcmul_(g, g, 1 - beta2)
//   w.mul_(keep).addcdiv_(m, v.sqrt() / root2 + eps, -step)       root2 = sqrt(1 - beta2^t), step = lr / (1 - beta1^t)
//
// kFused: where torch's vectors have a fused multiply-add, its lerp and addcmul round product and sum once.
template <class T>
struct LoopFactors {
  T toward, beta2, rest2;  // toward = 1 - beta1, rest2 = 1 - beta2
  T root2, eps, keep, step;
  T gain;  // of a direction alone: scale / (1 - beta1^t)
};

LRC_HD float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
LRC_HD double fused_multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <bool kFused, class T>
LRC_HD T product_and_sum(T a, T b, T c) {
  return kFused ? fused_multiply_add(a, b, c) : a * b + c;
}

template <bool kFused, class T>
LRC_HD T loop_first(const LoopFactors<T>& f, T m, T g) {
  const bool near = f.toward < T(0.5);  // torch goes from the nearer end
  return product_and_sum<kFused>(near ? f.toward : f.toward - T(1), g - m, near ? m : g);
}
template <bool kFused, class T>
LRC_HD T loop_second(const LoopFactors<T>& f, T v, T g) {
  return product_and_sum<kFused>(f.rest2 * g, g, v * f.beta2);
}
template <class T>
LRC_HD T loop_weight(const LoopFactors<T>& f, T w, T m, T root_of_v) {
  return w * f.keep + (-f.step * m) / (root_of_v / f.root2 + f.eps);
}

// The direction by itself, as it is put beside others: m / (v.sqrt() / root2 + eps) * gain.
template <class T>
LRC_HD T loop_direction(const LoopFactors<T>& f, T m, T root_of_v) {
  return m / (root_of_v / f.root2 + f.eps) * f.gain;
}

// ---- entry points ------------------------------------------------------------------------------------------------

// Consecutive elements of any floating dtype.
struct Run {
  void* data;
  DType dtype;
  int64_t size;
};

// One weight that is not projected, its gradient and its moments, all in one order.
struct PlainJob {
  Run w, g;
  Moment first, second;
  double correction1, root2;  // 1 - beta1^t, sqrt(1 - beta2^t)
  int64_t step;
  uint64_t seed;  // of its draws
};

struct PlainParams {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double lr = 1e-3, weight_decay = 0.0;
  double scale = 1.0;  // of a direction alone
  bool maximize = false, stochastic = false;
  bool fused = false;  // kFused above
  Roots roots = Roots::kRounded;
};

// AdamW with every weight of the list. Tier D1; draws as update_cpu does.
void plain_cpu(const std::vector<PlainJob>& jobs, const PlainParams& params);

// The numbers of those of `runs` that hold inf or nan.
std::vector<int64_t> nonfinite_cpu(const std::vector<Run>& runs);

// |X|_F of each, summed in float64. Tier D1.
std::vector<double> norms_cpu(const std::vector<Matrix>& matrices);

}  // namespace lowrank::subspace_step
