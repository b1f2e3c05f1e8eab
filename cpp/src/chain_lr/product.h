// product: c <- a b and c += a b of thin or small matrices, without packing where that pays.
#pragma once

#include <algorithm>

#include "chain_lr/level.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/integers.h"
#include "lowrank_core/parallel.h"

namespace lowrank::chain_lr {

constexpr int64_t kDirectBytes = int64_t(512) << 10;  // of the right factor: it stays in a second cache
constexpr int64_t kDirectDepth = 4096;                // that is summed without slices
constexpr int64_t kDirectUnit = 64;                   // rows or columns at a time: their operands stay in a first cache
constexpr int64_t kTaskWork = int64_t(1) << 18;       // multiply-adds that repay the start of a task
constexpr int64_t kMostTasks = 8;

template <class T>
bool is_direct(const Matrix& c, const Matrix& a, const Matrix& b) {
  constexpr DType dtype = dtype_of<T>::value;
  return c.dtype == dtype && a.dtype == dtype && b.dtype == dtype && c.col_stride == 1 && b.col_stride == 1 &&
         b.row_stride >= b.cols && b.rows <= kDirectDepth && b.rows * b.cols * int64_t(sizeof(T)) <= kDirectBytes;
}

// Each sum runs over k in order, so the partition decides no bit.
template <class T>
void multiply(const Matrix& c, const Matrix& a, const Matrix& b, bool add = false) {
  if (c.rows == 0 || c.cols == 0) return;
  if (!is_direct<T>(c, a, b)) return gemm(c, a, b, {.beta = add ? 1.0 : 0.0});
  const bool by_rows = c.rows >= c.cols;
  const int64_t size = by_rows ? c.rows : c.cols, units = ceil_div(size, kDirectUnit);
  const auto unit = [&](int64_t u) {
    const int64_t begin = u * kDirectUnit, count = std::min(kDirectUnit, size - begin);
    const int64_t i = by_rows ? begin : 0, j = by_rows ? 0 : begin;
    const DirectProduct<T> product{c.as<T>() + i * c.row_stride + j,
                                   a.as<T>() + i * a.row_stride,
                                   b.as<T>() + j,
                                   c.row_stride,
                                   a.row_stride,
                                   a.col_stride,
                                   b.row_stride,
                                   by_rows ? count : c.rows,
                                   by_rows ? c.cols : count,
                                   a.cols,
                                   add};
    products<T>().multiply(product);
  };
  const int64_t tasks = std::clamp<int64_t>(c.rows * c.cols * a.cols / kTaskWork, 1, std::min(kMostTasks, units));
  parallel_for(tasks, [&](int64_t t) {
    for (int64_t u = units * t / tasks; u < units * (t + 1) / tasks; ++u) unit(u);
  });
}

}  // namespace lowrank::chain_lr
