// level: what the family asks of an instruction-set level.
#pragma once

#include "lowrank_core/int4_project.h"
#include "lowrank_core/int4_project_address.h"
#include "lowrank_core/isa.h"

namespace lowrank::int4_project {

// c <- P dense with `of_rows`, else Pᵀ dense, for the packed P [rows, cols]; `transposed`: computed as cᵀ, the same
// sums.
struct PackedProduct {
  Matrix c;
  PackedMatrix packed;
  Matrix dense;
  bool of_rows, transposed;
};

// Consecutive groups of one line of floats, all full but the last. Element i of the run is rounded by the random word
// of element + i * element_step, if `stochastic`.
struct CodeRun {
  const float* x;
  int64_t length, group;
  Scheme scheme;
  bool stochastic;
  uint64_t seed, element;
  int64_t element_step;
};

struct CodeLevel {
  // Every group to group / 2 bytes, the last one padded with codes 0, and one of `stored`. False at the first group
  // that cannot be represented.
  bool (*encode)(uint8_t* bytes, Stored* stored, const CodeRun& run);
  // n <= kLargestGroup elements of one group.
  void (*decode)(float* x, const uint8_t* bytes, int64_t n, Grid grid, bool nf4);

  static const CodeLevel generic, avx2, avx512, avx512bf16;
};

struct ProductLevel {
  void (*multiply)(const PackedProduct& product);

  static const ProductLevel generic, avx2, avx512, avx512bf16;
};

inline const CodeLevel& code_level() { return at_level<CodeLevel>(); }
inline const ProductLevel& product_level() { return at_level<ProductLevel>(); }

}  // namespace lowrank::int4_project
