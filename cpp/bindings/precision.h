// precision: torch's names for how float32 products are evaluated.
#pragma once

#include <string>

#include "lowrank_core/gemm.h"

namespace lowrank {

// A setting allows less precision, it does not demand it: "high" is true float32 here, and so is "medium" on a CPU
// whose bfloat16 unit is no faster.
inline Math math_of(const std::string& precision) {
  if (precision == "medium") return has_fast_bfloat16() ? Math::kBFloat16 : Math::kFloat32;
  LRC_CHECK(precision == "highest" || precision == "high",
            "precision: must be 'highest', 'high' or 'medium', got '" + precision + "'");
  return Math::kFloat32;
}

}  // namespace lowrank
