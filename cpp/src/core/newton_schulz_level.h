// newton_schulz_level: what newton_schulz.cpp asks of an instruction-set level besides products.
#pragma once

#include "lowrank_core/isa.h"
#include "lowrank_core/view.h"

namespace lowrank {

struct NewtonSchulzLevel {
  // Rows [begin, end) of to <- from / divisor, the quotient rounded to float32, or float64 for a float64 `to`, and then
  // to the dtype of `to`, whose rows run along memory.
  void (*divide)(const Matrix& to, const Matrix& from, double divisor, int64_t begin, int64_t end);

  static const NewtonSchulzLevel generic, avx2, avx512, avx512bf16;
};

}  // namespace lowrank
