// precision: torch's names for how float32 products are evaluated.
#pragma once

#include <string>

#include "lowrank_core/gemm.h"

namespace lowrank {

// "high" allows less than it demands: we evaluate it in true float32, as "highest".
inline Math math_of(const std::string& precision) {
  if (precision == "medium") return Math::kBFloat16;
  LRC_CHECK(precision == "highest" || precision == "high",
            "precision: must be 'highest', 'high' or 'medium', got '" + precision + "'");
  return Math::kFloat32;
}

}  // namespace lowrank
