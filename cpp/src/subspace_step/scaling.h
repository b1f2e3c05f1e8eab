// scaling: matrices whose rows and columns are multiplied by factors, and how long they are behind a basis.
#pragma once

#include <algorithm>
#include <vector>

#include "lowrank_core/buffer.h"
#include "lowrank_core/dense.h"
#include "subspace_step/job.h"

namespace lowrank::subspace_step {

template <class T>
Buffer<T> rounded(const std::vector<double>& values, double factor) {
  Buffer<T> to(int64_t(values.size()));
  for (size_t i = 0; i < values.size(); ++i) to[int64_t(i)] = T(factor * values[i]);
  return to;
}

// x <- diag(rows) x diag(cols), without those that are null
template <class T>
void scale(const Matrix& x, const T* rows, const T* cols) {
  const bool by_columns = runs_along_columns(x);
  const Matrix lines = by_columns ? x.transposed() : x;
  const T* const across = by_columns ? cols : rows;
  const T* const along = by_columns ? rows : cols;
  parallel_chunks(lines.rows, std::max<int64_t>(1, kChunk / lines.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* const line = lines.as<T>() + i * lines.row_stride;
      for (int64_t j = 0; across && j < lines.cols; ++j) line[j] *= across[i];
      for (int64_t j = 0; along && j < lines.cols; ++j) line[j] *= along[j];
    }
  });
}

// |P D|² = <Pᵀ P, D Dᵀ>
template <class T>
double lifted_square(const Matrix& basis, const Matrix& direction) {
  MatrixBuffer<T> of_basis(basis.cols, basis.cols), of_direction(basis.cols, basis.cols);
  gram(of_basis.view(), basis);
  gram(of_direction.view(), direction.transposed());
  return vectors<T>().dot(of_basis.data(), of_direction.data(), of_basis.size());
}

}  // namespace lowrank::subspace_step
