// overlap: whether strided arrays share memory. An array that a kernel writes may share none with another argument, nor
// with itself: which write comes last is nobody's choice.
#pragma once

#include "lowrank_core/view.h"

namespace lowrank {

// The bytes that an array reaches into, [begin, end); empty for one without elements.
struct Extent {
  uintptr_t begin = 0, end = 0;
};
Extent extent(const View& view);

// Whether two elements of one array share a byte.
bool overlaps_itself(const View& view);

// Whether two arrays share a byte; those that interleave, such as two columns of a matrix, do not. Exact but for
// layouts of several strides that divide each other badly, where it errs on the side of yes.
bool overlap(const View& a, const View& b);

}  // namespace lowrank
