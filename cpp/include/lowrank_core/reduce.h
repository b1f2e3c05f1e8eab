// reduce: sums whose order depends on the length only. Chunks of fixed size are summed on their own, the partial
// sums are then added as a balanced tree; the number of threads never enters.
#pragma once

#include <cstdint>

#include "lowrank_core/buffer.h"
#include "lowrank_core/parallel.h"

namespace lowrank {

// Sum of `count` numbers as a balanced binary tree (in place).
inline double tree_sum(double* x, int64_t count) {
  if (count == 0) return 0.0;
  for (int64_t width = 1; width < count; width *= 2) {
    for (int64_t i = 0; i + width < count; i += 2 * width) x[i] += x[i + width];
  }
  return x[0];
}

// part(i) for i in [0, count), added in fixed order.
template <class Part>
double ordered_sum(int64_t count, const Part& part) {
  Buffer<double> partial(count);
  parallel_for(count, [&](int64_t i) { partial[i] = part(i); });
  return tree_sum(partial.data(), count);
}

}  // namespace lowrank
