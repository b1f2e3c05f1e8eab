// lines: what the identity, whose coordinates are the numbers themselves, can do without a transform.
#pragma once

#include "dct_select/level.h"

namespace lowrank::dct_select {

// out [m, r] <- these columns of a, which are then multiplied by `keep`.
void take_columns(const Matrix& out, const Matrix& a, const int64_t* columns, double keep);

// out [m, n] <- 0, but for these columns, which are those of `from`.
void put_columns(const Matrix& out, const Matrix& from, const int64_t* columns);

}  // namespace lowrank::dct_select
