// int4_project: what cpp/src/int4_project*.cpp ask of a level.
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

LRC_DECLARE_AT_LEVELS(
    // Of n >= 1 elements; NaN and infinity come through.
    int4::Extremes int4_extremes(const float* x, int64_t n);
    // n <= kLargestGroup elements of one group to ceil(n / 2) bytes; `words` of the elements, or null to round to
    // nearest.
    void int4_encode(uint8_t* bytes, const float* x, int64_t n, const int4::Placement& place, bool nf4,
                     const uint32_t* words);
    void int4_decode(float* x, const uint8_t* bytes, int64_t n, int4::Grid grid, bool nf4);
    void int4_product(const Int4Product& product))

}  // namespace lowrank
