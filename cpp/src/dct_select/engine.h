// engine: a transform with its plan, and what else the files of the family share.
#pragma once

#include <memory>

#include "dct_select/level.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/integers.h"

namespace lowrank::dct_select {

// Rows that one task transforms, a whole number of tiles of every level. Enough tasks to share out, few enough that
// their partial sums do not show.
constexpr int64_t kTaskRows = 64, kMostTasks = 64;
inline int64_t rows_of_a_task(int64_t rows) {
  const int64_t each = ceil_div(rows, kMostTasks);
  return each <= kTaskRows ? kTaskRows : round_up(each, kTaskRows);
}

// A plan of the cosine bases is looked up by n, and built where it is not among the last few.
template <class T>
struct Prepared {
  int64_t n = 0;
  fft::Plan<T> plan;
  Buffer<T> turns{0};
  Buffer<int32_t> time{0}, exchanged{0};  // where number i of a row stands; with the complex parts exchanged
  Buffer<int32_t> frequency{0};           // where coordinate k stands
};
template <class T>
std::shared_ptr<const Prepared<T>> prepared(int64_t n);

// The n x n matrix whose columns are the atoms of "dct2"; those of "dct3" are its rows.
template <class T>
std::shared_ptr<const MatrixBuffer<T>> dct2_atoms(int64_t n);

// Whether the product with the matrix of atoms is the faster way: awkward lengths, as far as they are short.
bool prefers_product(Basis basis, int64_t n, Method method);

// A transform and what it points to.
template <class T>
class Engine {
 public:
  Engine(Basis basis, int64_t n);

  const Transform<T>& transform() const { return transform_; }
  // Each task's rows through the transform; `job` with all but transform, begin and end.
  void run(const RowJob<T>& job) const;
  // What makes the passes orthonormal: they leave out Hadamard's 1 / sqrt(n).
  double amplitude() const;

 private:
  std::shared_ptr<const Prepared<T>> prepared_;
  Transform<T> transform_;
};

}  // namespace lowrank::dct_select
