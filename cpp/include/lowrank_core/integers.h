// integers: quotients that are rounded up. Of numbers that are not negative.
#pragma once

#include <cstdint>

#include "lowrank_core/checks.h"

namespace lowrank {

LRC_HD constexpr int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

// The next multiple of `unit`.
LRC_HD constexpr int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

}  // namespace lowrank
