// job: what the steps of a list of weights in subspaces have in common.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "lowrank_core/parallel.h"
#include "subspace_step/level.h"

namespace lowrank::subspace_step {

// A weight of more than this part of what is one thread's share of all is worked on by all threads: side by side it
// might leave the others without work for as long.
constexpr int64_t kPartOfShare = 2;

inline int64_t size_of(const Matrix& m) { return m.rows * m.cols; }

// Calls one(job) for every job: large ones with all threads each, then the others side by side, longest first. Either
// way the same bits.
template <class J, class One>
void for_each_job(const std::vector<J>& jobs, const One& one) {
  std::vector<const J*> order;
  int64_t total = 0;
  for (const J& job : jobs) {
    order.push_back(&job);
    total += size_of(job.w);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](auto* left, auto* right) { return size_of(left->w) > size_of(right->w); });
  const int64_t parts = kPartOfShare * max_threads();
  size_t first = 0;
  for (; first < order.size() && size_of(order[first]->w) * parts > total; ++first) one(*order[first]);
  parallel_for(int64_t(order.size() - first), [&](int64_t i) { one(*order[first + size_t(i)]); });
}

// Turns `low`, which holds R in the order of job.low, into N, and moves the moments.
inline void advance(const Job& job, const Params& p, const Matrix& low) {
  if (p.rule == Rule::kGiven) return;
  const int64_t size = size_of(low);
  const Advance a{.rule = p.rule,
                  .beta1 = p.beta1,
                  .beta2 = p.beta2,
                  .eps = p.eps,
                  .step = job.step,
                  .low = low.data,
                  .dtype = low.dtype,
                  .size = size,
                  .first = job.first,
                  .second = job.second,
                  .seed = job.seed};
  parallel_chunks(size, kChunk, [&](int64_t begin, int64_t end) { moment_level().advance(a, begin, end); });
}

// What every write-back has in common, and all that there is to one where the rest of the gradient is dropped.
inline WriteBack plain_write_back(const Job& job, const Params& p, const Matrix& direction) {
  return {.to = {job.w, job.transposed, p.stochastic, job.seed, job.step},
          .left = job.basis,
          .right = direction,
          .keep = keep_factor(p.lr, p.weight_decay),
          .step = p.lr * p.scale,
          .arithmetic = arithmetic_for(job.low.dtype, p.math)};
}

inline Gradient gradient_of(const Job& job, const Params& p) { return {job.g, p.maximize ? -1.0 : 1.0}; }

inline bool runs_along_columns(const Matrix& w) { return std::abs(w.row_stride) < std::abs(w.col_stride); }

inline void transpose(Target& to) {
  to.w = to.w.transposed();
  to.transposed = !to.transposed;
}
inline void transpose(WriteBack& product) {
  transpose(product.to);
  const Matrix left = product.left;
  product.left = product.right.transposed();
  product.right = left.transposed();
}
inline void transpose(ScaledWriteBack& product) {
  transpose(static_cast<WriteBack&>(product));
  product.gradient.g = product.gradient.g.transposed();
  std::swap(product.row_gains, product.col_gains);
}
inline void transpose(SignWriteBack& product) {
  transpose(static_cast<WriteBack&>(product));
  product.gradient.g = product.gradient.g.transposed();
}

// The same with w's rows along memory.
template <class Product>
Product along_memory(Product product) {
  if (runs_along_columns(product.to.w)) transpose(product);
  return product;
}

}  // namespace lowrank::subspace_step
