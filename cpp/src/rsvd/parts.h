// parts: what the fixed-rank and the growing decomposition share.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "lowrank_core/dense.h"
#include "lowrank_core/parallel.h"
#include "lowrank_core/rsvd.h"

namespace lowrank::rsvd {

constexpr int64_t kSketchRows = 256;  // rows of a sketch that one task draws

// Jacobi stops at this cosine: below it, the columns differ by less than the rounding of what they came from.
template <class T>
constexpr double kJacobiTol = sizeof(T) == 4 ? 1e-9 : 0.0;

constexpr int64_t kOneThreadEach = 2048 * 2048;  // matrices up to this size get one thread each, if there are several

// Calls one(index) for each job of a list: for those whose matrix `a` is larger than that one after another, with all
// threads each, then for all others side by side, the largest first, so that no thread is left alone with one at the
// end. Either way the same bits.
template <class Job, class One>
void for_each_job(const std::vector<Job>& jobs, const One& one) {
  const auto size = [&](size_t i) { return jobs[i].a.rows * jobs[i].a.cols; };
  std::vector<size_t> order(jobs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) { return size(i) > size(j); });
  const auto is_large = [&](size_t i) { return size(i) > kOneThreadEach; };
  const auto small = std::partition_point(order.begin(), order.end(), is_large);
  std::for_each(order.begin(), small, one);
  parallel_for(order.end() - small, [&](int64_t k) { one(small[k]); });
}

inline void check_finite(double size) {
  if (!std::isfinite(size)) throw NotFinite();
}

constexpr int kZero = std::numeric_limits<int>::min() / 4;  // exponent of what is zero; sums of two still fit

// Of a largest magnitude. Throws NotFinite.
inline int exponent_of(double largest) {
  check_finite(largest);
  return largest > 0.0 ? std::ilogb(largest) : kZero;
}

// A matrix divided by 2^exponent.
template <class T>
struct Scaled {
  MatrixBuffer<T> values;
  int exponent;

  Scaled(const Matrix& a, int e) : values(a.rows, a.cols), exponent(e) {
    copy_divided(values.view(), a, std::ldexp(1.0, e));
  }
};

// `count` numbers times 2^exponent. Throws NotFinite where T has no number so large.
template <class T>
void multiply_all(T* x, int64_t stride, int64_t count, int exponent) {
  for (int64_t j = 0; j < count; ++j) {
    const T product = T(std::ldexp(double(x[j * stride]), exponent));
    check_finite(double(product));
    x[j * stride] = product;
  }
}

// out [rows, cols] row-major <- a sketch.
template <class T>
void draw_sketch(T* out, int64_t rows, int64_t cols, uint64_t seed, uint32_t step) {
  parallel_chunks(rows, kSketchRows, [&](int64_t begin, int64_t end) {
    std::fill(out + begin * cols, out + end * cols, T(0));
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t t = 0; t < sketch_nonzeros(cols); ++t) {
        const SketchEntry entry = sketch_entry(seed, step, cols, i, t);
        out[i * cols + entry.col] = T(entry.value);
      }
    }
  });
}

// SVD of B = Qᵀ A, given as Bᵀ [n, l], of any rank. On return bt holds an orthonormal basis V0 of the row space, and
// B = left diag(s) (V0 right)ᵀ.
struct SmallSvd {
  MatrixBuffer<double> left, right;  // [l, l]; columns are vectors
  Buffer<double> s;
};

template <class T>
SmallSvd small_svd(MatrixBuffer<T>& bt) {
  const int64_t n = bt.rows(), l = bt.cols();
  MatrixBuffer<T> original(n, l), spare(n, l);
  std::copy(bt.data(), bt.data() + n * l, original.data());
  orthonormalize(bt, spare);
  // Bᵀ = V0 R with R = V0ᵀ Bᵀ in float64; R = right S leftᵀ.
  MatrixBuffer<double> r(l, l);
  gemm(r.view(), bt.view().transposed(), original.view());
  SmallSvd svd{MatrixBuffer<double>(l, l), MatrixBuffer<double>(l, l), Buffer<double>(l)};
  MatrixBuffer<double> vt(l, l);
  jacobi_svd(r.data(), l, svd.right.data(), svd.s.data(), vt.data(), kJacobiTol<T>);
  check_finite(l == 0 ? 0.0 : svd.s[0]);
  copy(svd.left.view(), vt.view().transposed());
  return svd;
}

// out <- basis (first columns of rotation), in T and rounded once more only if out is narrower.
template <class T>
void rotate_basis(const Matrix& out, const Matrix& basis, MatrixBuffer<double>& rotation) {
  MatrixBuffer<T> leading(rotation.rows(), out.cols);
  copy(leading.view(), rotation.view().block(0, 0, rotation.rows(), out.cols));
  gemm(out, basis, leading.view());
}

// A on the span of w, which is orthonormal: of rows of A, w [n, L] and image = A w [m, L], or of columns, w [m, L] and
// image = Aᵀ w [n, L].
template <class T>
struct Span {
  MatrixBuffer<T> w, image;
  bool of_rows;
};

// What A's dominant rows or columns span, by the search that rsvd.h describes; `basis` [m, k] or null. Only search
// directions are computed with p.math; images are what they are said to be. Defined for float and double.
template <class T>
Span<T> search(const Matrix& a, const Matrix* basis, int64_t l, const Params& p);

}  // namespace lowrank::rsvd
