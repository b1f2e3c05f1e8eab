// newfamily: what the family is.
//
//   y_i = 2 x_i
//
// Source: paper, equation.
#pragma once

#include "lowrank_core/checks.h"
#include "lowrank_core/view.h"

namespace lowrank::newfamily {

LRC_HD float formula(float x) { return 2 * x; }

// out <- formula of x, both contiguous float32 of the same size. Tier D0.
void newfamily_cpu(const View& out, const View& x);

}  // namespace lowrank::newfamily
