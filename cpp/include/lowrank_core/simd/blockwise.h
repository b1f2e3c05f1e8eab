// blockwise: what cpp/src/blockwise.cpp asks of a level.
#pragma once

#include "lowrank_core/blockwise.h"
#include "lowrank_core/isa.h"

namespace lowrank {

// Blocks [first, first + count) of an array of `size` elements; `draws` null: to nearest.
struct BlockRun {
  void* codes;
  float *scales, *values;
  int64_t size, first, count;
  blockwise::MapKind map;
  const blockwise::Draws* draws;
};

LRC_DECLARE_AT_LEVELS(void blockwise_encode(const BlockRun& run); void blockwise_decode(const BlockRun& run))

}  // namespace lowrank
