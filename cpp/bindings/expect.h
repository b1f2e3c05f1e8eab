// expect: what the bindings check of arrays. Memory safety only: the operators have checked the contract and worded the
// refusals.
#pragma once

#include <string>

#include "lowrank_core/view.h"

namespace lowrank {

// Throws Error: <op>: `<argument>` has the wrong shape, dtype or length.
struct Expect {
  const char* op;

  void operator()(bool fits, const char* argument) const {
    LRC_CHECK(fits, std::string(op) + ": `" + argument + "` has the wrong shape, dtype, strides or length");
  }
  // A matrix of floats.
  Matrix matrix(const View& view, const char* argument) const {
    (*this)(view.rank == 2 && is_float(view.dtype), argument);
    return view.matrix();
  }
  // A vector of n floats as a matrix of one row.
  Matrix row(const View& view, int64_t n, const char* argument) const {
    (*this)(view.rank == 1 && view.shape[0] == n && is_float(view.dtype), argument);
    return {view.data, view.dtype, 1, n, 0, view.stride[0]};
  }
};

inline bool is_matrix(const View& view, int64_t rows, int64_t cols) {
  return view.rank == 2 && view.shape[0] == rows && view.shape[1] == cols;
}

// Of the last two dimensions; -1 where there is none.
inline int64_t rows_of(const View& view) { return view.rank >= 2 ? view.shape[size_t(view.rank - 2)] : -1; }
inline int64_t cols_of(const View& view) { return view.rank >= 1 ? view.shape[size_t(view.rank - 1)] : -1; }

}  // namespace lowrank
