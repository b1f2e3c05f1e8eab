#include "lowrank_core/rsvd.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "lowrank_core/dense.h"
#include "lowrank_core/parallel.h"
#include "rsvd_parts.h"

namespace lowrank::rsvd {
namespace {

constexpr int64_t kOneThreadEach = 2048 * 2048;  // matrices up to this size get one thread each, if there are several

// The matrix under study, once as given and once in the type that the power iterations read.
struct Source {
  Matrix exact, fast;
  Math math;
};

// The start of a warm refresh: the given basis beside fresh random columns. [m, l]
template <class T>
void warm_start(MatrixBuffer<T>& q, const Matrix& basis, uint64_t seed) {
  const int64_t m = q.rows(), l = q.cols(), known = std::min(basis.cols, l), fresh = l - known;
  copy(q.view().block(0, 0, m, known), basis.block(0, 0, m, known));
  MatrixBuffer<T> omega(m, fresh);
  draw_signs(omega.data(), m, fresh, seed, 0);
  copy(q.view().block(0, known, m, fresh), omega.view());
}

// Orthonormal basis of what A's dominant columns span. [m, l]
template <class T>
MatrixBuffer<T> find_range(const Source& a, const Matrix* basis, int64_t l, const Params& p) {
  const int64_t m = a.exact.rows, n = a.exact.cols, longest = std::max(m, n);
  MatrixBuffer<T> q(longest, l), z(longest, l), spare(longest, l);
  q.reshape(m, l);
  z.reshape(n, l);
  if (basis) {
    warm_start(q, *basis, p.seed);
  } else {
    draw_signs(z.data(), n, l, p.seed, 0);
    gemm(q.view(), a.fast, z.view(), {.math = a.math});
    orthonormalize(q, spare, p.niter == 0 ? OrthPasses::kTwo : OrthPasses::kOne);
  }
  for (int64_t i = 0; i < p.niter; ++i) {
    z.reshape(n, l);
    gemm(z.view(), a.fast.transposed(), q.view(), {.math = a.math});
    orthonormalize(z, spare, OrthPasses::kOne);
    q.reshape(m, l);
    gemm(q.view(), a.fast, z.view(), {.math = a.math});
    orthonormalize(q, spare, i + 1 == p.niter ? OrthPasses::kTwo : OrthPasses::kOne);
  }
  return q;
}

// Largest-magnitude entry of each column of u positive, the first one on ties; vh follows if there is one.
template <class T>
void fix_signs(const Matrix& u, const Matrix* vh) {
  for (int64_t j = 0; j < u.cols; ++j) {
    T* column = u.as<T>() + j * u.col_stride;
    T largest = 0;
    for (int64_t i = 0; i < u.rows; ++i) {
      const T value = column[i * u.row_stride];
      if (std::abs(value) > std::abs(largest)) largest = value;
    }
    if (!(largest < 0)) continue;
    for (int64_t i = 0; i < u.rows; ++i) column[i * u.row_stride] = -column[i * u.row_stride];
    if (!vh) continue;
    T* row = vh->as<T>() + j * vh->row_stride;
    for (int64_t i = 0; i < vh->cols; ++i) row[i * vh->col_stride] = -row[i * vh->col_stride];
  }
}

// The rotation that takes Q to the left singular vectors of A, strongest first: [l, l], columns are vectors. In float32
// the eigenvectors of B Bᵀ in float64 are exact enough: what squaring loses lies below the rounding of B.
template <class T>
MatrixBuffer<double> left_rotation(MatrixBuffer<T>& bt) {
  if constexpr (std::is_same_v<T, double>) {
    return std::move(small_svd(bt).left);
  } else {
    const int64_t l = bt.cols();
    MatrixBuffer<double> g(l, l), rows(l, l), rotation(l, l);
    Buffer<double> values(l);
    gram(g.view(), bt.view());
    check_finite(squared_norm(g.view()));
    symmetric_eigenvectors(g.data(), l, rows.data(), values.data());
    std::vector<int64_t> order(static_cast<size_t>(l));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return values[i] > values[j]; });
    for (int64_t j = 0; j < l; ++j) {
      for (int64_t i = 0; i < l; ++i) rotation.at(i, j) = rows.at(order[size_t(j)], i);
    }
    return rotation;
  }
}

template <class T>
void one_matrix(const Matrix& u, T* s, int64_t s_stride, const Matrix* vh, const Matrix& a, const Matrix* basis,
                const Params& p) {
  const int64_t m = a.rows, n = a.cols, rank = u.cols;
  const int64_t l = sketch_width(m, n, rank, basis ? basis->cols : 0, p.oversample);
  if (l == 0) return;
  Source source{a, a, p.math};
  MatrixBuffer<bfloat16> rounded(p.math == Math::kBFloat16 ? m : 0, n);
  if (p.math == Math::kBFloat16) {  // every iteration reads the matrix twice: round it once
    copy(rounded.view(), a);
    source.fast = rounded.view();
  }
  MatrixBuffer<T> q = find_range<T>(source, basis, l, p);
  MatrixBuffer<T> bt(n, l);
  gemm(bt.view(), a.transposed(), q.view());
  if (vh) {
    SmallSvd svd = small_svd(bt);
    rotate_basis<T>(u, q.view(), svd.left);
    rotate_basis<T>(vh->transposed(), bt.view(), svd.right);
    for (int64_t j = 0; j < rank; ++j) s[j * s_stride] = T(svd.s[j]);
  } else {
    MatrixBuffer<double> rotation = left_rotation(bt);
    rotate_basis<T>(u, q.view(), rotation);
  }
  fix_signs<T>(u, vh);
}

// Calls one(index) for `count` matrices: side by side while even the largest is small, else with all threads each.
// Either way the same bits.
template <class One>
void for_each_matrix(int64_t count, int64_t largest, const One& one) {
  if (count > 1 && largest <= kOneThreadEach) return parallel_for(count, one);
  for (int64_t i = 0; i < count; ++i) one(i);
}

int64_t matrix_size(const View& a) { return a.shape[size_t(a.rank - 2)] * a.shape[size_t(a.rank - 1)]; }

template <class F>
void with_work_type(DType dtype, const F& f) {
  if (dtype == DType::kFloat64) return f(double{});
  f(float{});
}

// Leading entries of s [..., r] of matrix `index`.
template <class T>
T* vector_of(const View& s, int64_t index) {
  int64_t offset = 0;
  for (int i = s.rank - 2; i >= 0; --i) {
    offset += (index % s.shape[size_t(i)]) * s.stride[size_t(i)];
    index /= s.shape[size_t(i)];
  }
  return static_cast<T*>(s.data) + offset;
}

}  // namespace

void sketch_cpu(const View& out, uint64_t seed, uint32_t step) {
  LRC_CHECK(out.rank == 2 && out.contiguous() && out.dtype == DType::kFloat32,
            "sketch: `out` must be a contiguous float32 matrix");
  draw_signs(static_cast<float*>(out.data), out.shape[0], out.shape[1], seed, step);
}

void rsvd_cpu(const View& u, const View& s, const View& vh, const View& a, const std::optional<View>& basis,
              const Params& params) {
  with_work_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_each_matrix(a.batch(), matrix_size(a), [&](int64_t i) {
      const Matrix right = vh.matrix(i);
      const Matrix start = basis ? basis->matrix(i) : Matrix{};
      one_matrix<T>(u.matrix(i), vector_of<T>(s, i), s.stride[size_t(s.rank - 1)], &right, a.matrix(i),
                    basis ? &start : nullptr, params);
    });
  });
}

void range_finder_cpu(const std::vector<RangeJob>& jobs, const Params& params) {
  int64_t largest = 0;
  for (const RangeJob& job : jobs) largest = std::max(largest, job.a.rows * job.a.cols);
  for_each_matrix(int64_t(jobs.size()), largest, [&](int64_t i) {
    const RangeJob& job = jobs[size_t(i)];
    Params own = params;
    own.seed = job.seed;
    with_work_type(job.a.dtype, [&](auto tag) {
      one_matrix<decltype(tag)>(job.q, nullptr, 0, nullptr, job.a, job.basis ? &*job.basis : nullptr, own);
    });
  });
}

void factored_svd_cpu(const View& u, const View& s, const View& vh, const View& b, const View& a) {
  with_work_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_each_matrix(a.batch(), matrix_size(a), [&](int64_t i) {
      // With b = Qb Rb and Bᵀ := aᵀ Rbᵀ [n, k], the product is Qb B.
      const Matrix left = b.matrix(i), right = a.matrix(i), out = u.matrix(i), out_vh = vh.matrix(i);
      const int64_t m = left.rows, n = right.cols, k = left.cols, rank = out.cols;
      if (rank == 0) return;
      if (k > std::min(m, n)) {  // the product is smaller than its factors: form it
        MatrixBuffer<T> product(m, n);
        gemm(product.view(), left, right);
        const Params exact{.oversample = std::min(m, n), .niter = 1};
        return one_matrix<T>(out, vector_of<T>(s, i), s.stride[size_t(s.rank - 1)], &out_vh, product.view(), nullptr,
                             exact);
      }
      MatrixBuffer<T> qb(m, k), spare(m, k), rb(k, k), bt(n, k);
      copy(qb.view(), left);
      orthonormalize(qb, spare);
      gemm(rb.view(), qb.view().transposed(), left);
      gemm(bt.view(), right.transposed(), rb.view().transposed());
      SmallSvd svd = small_svd(bt);
      rotate_basis<T>(out, qb.view(), svd.left);
      T* values = vector_of<T>(s, i);
      for (int64_t j = 0; j < rank; ++j) values[j * s.stride[size_t(s.rank - 1)]] = T(svd.s[j]);
      rotate_basis<T>(out_vh.transposed(), bt.view(), svd.right);
      fix_signs<T>(out, &out_vh);
    });
  });
}

bool orthonormalize_cpu(const View& q, const View& y, OrthMethod method) {
  bool sound = true;
  with_work_type(y.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t i = 0; i < y.batch() && sound; ++i) {
      const Matrix from = y.matrix(i);
      MatrixBuffer<T> work(from.rows, from.cols), spare(from.rows, from.cols);
      copy(work.view(), from);
      sound = orthonormalize_by(method, work, spare);
      copy(q.matrix(i), work.view());
    }
  });
  return sound;
}

}  // namespace lowrank::rsvd
