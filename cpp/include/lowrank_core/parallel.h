// parallel: the one place that starts threads. The partition depends on the work, never on the number of threads,
// so a result does not change with it. OpenMP through the plain libgomp that torch uses too, hence
// torch.set_num_threads governs it.
//
// A forked child has none of its parent's threads, and libgomp would wait for them forever. There everything runs on
// the calling thread, with the same bits.
#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>

#include "lowrank_core/float_environment.h"
#include "lowrank_core/isa.h"
#include "lowrank_core/workspace.h"

namespace lowrank {

// Whether this process was forked from one that had loaded this library.
bool forked();

inline int max_threads() { return forked() ? 1 : omp_get_max_threads(); }

// Calls body(i) for i in [0, count), each exactly once, in any order and possibly at the same time, in the default
// floating-point environment and at the caller's instruction-set level. Nested calls run on the calling thread. An
// exception of a body is rethrown here once all have ended.
template <class Body>
void parallel_for(int64_t count, const Body& body) {
  if (count <= 0) return;
  if (count == 1 || omp_in_parallel() || max_threads() == 1) {
    const FloatEnvironment environment;
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  const Isa level = isa();
  std::exception_ptr error;
#pragma omp parallel
  {
    const FloatEnvironment environment;
    const LevelScope scope(level);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < count; ++i) {
      try {
        body(i);
      } catch (...) {
#pragma omp critical(lowrank_parallel_for)
        if (!error) error = std::current_exception();
      }
    }
    if (omp_get_thread_num() != 0) {  // the calling thread may be in the middle of a product
      trim_workspace();
      trim_blocks(kKeptBytes);
    }
  }
  if (error) std::rethrow_exception(error);
}

// Splits [0, size) into chunks of `chunk` and calls body(begin, end) for each.
template <class Body>
void parallel_chunks(int64_t size, int64_t chunk, const Body& body) {
  parallel_for((size + chunk - 1) / chunk, [&](int64_t i) {
    const int64_t begin = i * chunk;
    body(begin, begin + chunk < size ? begin + chunk : size);
  });
}

}  // namespace lowrank
