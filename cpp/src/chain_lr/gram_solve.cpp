#include <algorithm>
#include <cmath>
#include <limits>

#include "chain_lr/product.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/chain_lr.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/parallel.h"

namespace lowrank::chain_lr {
namespace {

constexpr double kUnit = 0x1p-53;
constexpr int64_t kColumns = 1024;  // of a gradient that a task divides

bool is_finite(const double* x, int64_t n) {
  return std::all_of(x, x + n, [](double value) { return std::isfinite(value); });
}

// (yᵀ y + damping I)⁻¹ [r, r], symmetric to the bit. Pivots are at least the damping but for rounding; where that makes
// one vanish, the diagonal is raised by as much as its own rounding. NaN where y or its squares are not finite.
void inverse_gram(MatrixBuffer<double>& inverse, const Matrix& y, double damping) {
  const int64_t r = y.cols;
  MatrixBuffer<double> sums(r, r), root(r, r);
  gram(sums.view(), y);
  double trace = 0.0;
  for (int64_t j = 0; j < r; ++j) trace += sums.at(j, j);
  if (is_finite(sums.data(), r * r) && std::isfinite(damping + trace)) {
    for (double raise = 0.0; raise < 1.0; raise = raise > 0.0 ? 4.0 * raise : double(r) * kUnit) {
      std::copy_n(sums.data(), r * r, root.data());
      for (int64_t j = 0; j < r; ++j) root.at(j, j) += damping + raise * trace;
      if (!cholesky_upper(root.data(), r, 0.0)) continue;
      invert_upper(root.data(), r);
      return gram(inverse.view(), root.view().transposed());
    }
  }
  std::fill_n(inverse.data(), r * r, std::numeric_limits<double>::quiet_NaN());
}

// out [r, k] <- inverse grad, the way that out is stored. The inverse is rounded to the type that is summed in: what
// this moves is what one rounding of the gradient moves.
template <class T>
void divide(const Matrix& out, const Matrix& inverse, const Matrix& grad) {
  if (std::abs(out.row_stride) < std::abs(out.col_stride)) {
    multiply<T>(out.transposed(), grad.transposed(), inverse);
  } else {
    multiply<T>(out, inverse, grad);
  }
}

}  // namespace

void gram_solve_cpu(const std::vector<GramSolve>& list) {
  struct Task {
    size_t number;
    int64_t column;
  };
  std::vector<MatrixBuffer<double>> inverses;
  std::vector<Task> tasks;
  for (size_t i = 0; i < list.size(); ++i) {
    inverses.emplace_back(list[i].out.rows, list[i].out.rows);
    for (int64_t j = 0; j < list[i].out.cols; j += kColumns) tasks.push_back({i, j});
  }
  parallel_for(int64_t(list.size()), [&](int64_t i) {
    const GramSolve& one = list[size_t(i)];
    if (!one.out.empty()) inverse_gram(inverses[size_t(i)], one.factor, one.damping);
  });
  parallel_for(int64_t(tasks.size()), [&](int64_t t) {
    const auto [number, column] = tasks[size_t(t)];
    const GramSolve& one = list[number];
    const int64_t columns = std::min(kColumns, one.out.cols - column);
    if (one.out.empty()) return;
    with_work_type(one.out.dtype, [&](auto tag) {
      using T = decltype(tag);
      MatrixBuffer<T> inverse(one.out.rows, one.out.rows);
      std::copy_n(inverses[number].data(), inverse.size(), inverse.data());
      divide<T>(one.out.block(0, column, one.out.rows, columns), inverse.view(),
                one.grad.block(0, column, one.grad.rows, columns));
    });
  });
}

}  // namespace lowrank::chain_lr
