// subspace_step_roots: which square roots a kernel takes that rounds as torch does.
#pragma once

#include <string>

#include "expect.h"
#include "lowrank_core/roots.h"
#include "subspace_step_moments.h"

namespace lowrank {

inline Roots roots_of(const std::string& roots) {
  if (roots == "rounded") return Roots::kRounded;
  expect_step(roots == "mkl" && mkl_roots<float>() && mkl_roots<double>(), "roots");
  return Roots::kMkl;
}

}  // namespace lowrank
