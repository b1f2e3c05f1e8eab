// level: what the family asks of an instruction-set level.
#pragma once

#include "lowrank_core/int4_project.h"
#include "lowrank_core/isa.h"

namespace lowrank {

// Codes as an operand: element (i, j) is in byte (i / 2) * along + j * across, the lower half for even i, and its grid
// in entry (i / group) * group_along + j * group_across of scale and base. One of along and across is 1.
struct Int4Matrix {
  const uint8_t* bytes;
  const float *scale, *base;
  int64_t rows, cols;  // of i and j
  int64_t along, across, group_along, group_across;
  int64_t group;
  bool nf4;
};

// c <- P dense with `of_rows`, else Pᵀ dense, for the packed P [rows, cols]; `transposed`: computed as cᵀ, the same
// sums.
struct Int4Product {
  Matrix c;
  Int4Matrix packed;
  Matrix dense;
  bool of_rows, transposed;
};

// Consecutive groups of one line of floats, all full but the last. Element i of the run is rounded by the random word
// of element + i * element_step, if `stochastic`.
struct Int4Run {
  const float* x;
  int64_t length, group;
  int4_project::Scheme scheme;
  bool stochastic;
  uint64_t seed, element;
  int64_t element_step;
};

struct Int4CodeLevel {
  // Every group to group / 2 bytes, the last one padded with codes 0, and one of `stored`. False at the first group
  // that cannot be represented.
  bool (*encode)(uint8_t* bytes, int4_project::Stored* stored, const Int4Run& run);
  // n <= kLargestGroup elements of one group.
  void (*decode)(float* x, const uint8_t* bytes, int64_t n, int4_project::Grid grid, bool nf4);

  static const Int4CodeLevel generic, avx2, avx512, avx512bf16;
};

struct Int4ProductLevel {
  void (*multiply)(const Int4Product& product);

  static const Int4ProductLevel generic, avx2, avx512, avx512bf16;
};

}  // namespace lowrank
