// normal_level: what normal.cpp asks of an instruction-set level.
#pragma once

#include <cstdint>

#include "lowrank_core/isa.h"

namespace lowrank {

template <class T>
struct NormalFunctions {
  // to[i] <- number i of `seed` over `divisor`, for i in [begin, end)
  void (*fill)(T* to, int64_t begin, int64_t end, uint64_t seed, double divisor);
};

struct NormalLevel {
  ByType<NormalFunctions> numbers;

  static const NormalLevel generic, avx2, avx512, avx512bf16;
};

}  // namespace lowrank
