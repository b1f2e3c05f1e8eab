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

// Largest-magnitude entry of each column of u positive, the first one on ties; vh follows if there is one.
template <class T>
void fix_signs(const Matrix& u, const Matrix* vh) {
  std::vector<T> largest(size_t(u.cols), T(0));
  for (int64_t i = 0; i < u.rows; ++i) {
    const T* row = u.as<T>() + i * u.row_stride;
    for (int64_t j = 0; j < u.cols; ++j) {
      const T value = row[j * u.col_stride], kept = largest[size_t(j)];
      largest[size_t(j)] = std::abs(value) > std::abs(kept) ? value : kept;
    }
  }
  std::vector<T> sign;
  for (const T value : largest) sign.push_back(value < 0 ? T(-1) : T(1));
  const auto flip = [&](const Matrix& vectors) {
    for (int64_t i = 0; i < vectors.rows; ++i) {
      T* row = vectors.as<T>() + i * vectors.row_stride;
      for (int64_t j = 0; j < vectors.cols; ++j) row[j * vectors.col_stride] *= sign[size_t(j)];
    }
  };
  flip(u);
  if (vh) flip(vh->transposed());
}

// The leading `rank` singular values of an image and its right vectors; the left ones where they are wanted.
template <class T>
struct Ritz {
  MatrixBuffer<T> vectors;        // [m, rank] or empty
  Buffer<double> s;               // [rank]
  MatrixBuffer<double> rotation;  // [L, rank]
};

// float32: by the eigenvectors of the Gram matrix in float64. What squaring loses lies below the rounding of the image;
// directions that small come out of the orthonormalization, which keeps the order and the sign of all others.
Ritz<float> ritz(MatrixBuffer<float>& image, int64_t rank, bool with_vectors) {
  const int64_t m = image.rows(), l = image.cols();
  MatrixBuffer<double> g(l, l), rows(l, l);
  Buffer<double> values(l);
  gram(g.view(), image.view());
  check_finite(squared_norm(g.view()));
  symmetric_eigenvectors(g.data(), l, rows.data(), values.data());
  std::vector<int64_t> order(static_cast<size_t>(l));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return values[i] > values[j]; });

  Ritz<float> out{MatrixBuffer<float>(with_vectors ? m : 0, rank), Buffer<double>(rank), MatrixBuffer<double>(l, rank)};
  for (int64_t j = 0; j < rank; ++j) {
    const int64_t from = order[size_t(j)];
    out.s[j] = std::sqrt(std::max(0.0, values[from]));
    for (int64_t i = 0; i < l; ++i) out.rotation.at(i, j) = rows.at(from, i);
  }
  if (!with_vectors) return out;
  MatrixBuffer<float> scaled(l, rank), spare(m, rank);
  for (int64_t j = 0; j < rank; ++j) {
    const double length = std::max(out.s[j], 0x1p-40 * out.s[0]);  // shorter ones are rounding, and stay representable
    for (int64_t i = 0; i < l; ++i) scaled.at(i, j) = length > 0.0 ? float(out.rotation.at(i, j) / length) : 0.0f;
  }
  gemm(out.vectors.view(), image.view(), scaled.view());
  orthonormalize(out.vectors, spare);
  return out;
}

Ritz<double> ritz(MatrixBuffer<double>& image, int64_t rank, bool with_vectors) {
  const int64_t m = image.rows(), l = image.cols();
  SmallSvd svd = small_svd(image);  // image becomes an orthonormal basis of itself
  Ritz<double> out{MatrixBuffer<double>(with_vectors ? m : 0, rank), Buffer<double>(rank),
                   MatrixBuffer<double>(l, rank)};
  if (with_vectors) rotate_basis<double>(out.vectors.view(), image.view(), svd.right);
  std::copy(svd.s.data(), svd.s.data() + rank, out.s.data());
  copy(out.rotation.view(), svd.left.view().block(0, 0, l, rank));
  return out;
}

// Whether numbers of this size can be squared, divided by and multiplied with room to spare.
template <class T>
bool is_moderate(double largest) {
  constexpr int exponent = sizeof(T) == 4 ? 60 : 400;
  return largest > std::ldexp(1.0, -exponent) && largest < std::ldexp(1.0, exponent);
}

template <class T>
void one_matrix(const Matrix& u, T* s, int64_t s_stride, const Matrix* vh, const Matrix& a, const Matrix* basis,
                const Params& p);

// The same for a matrix of very small or very large numbers, by way of a copy whose largest is near 1.
template <class T>
void one_scaled(const Matrix& u, T* s, int64_t s_stride, const Matrix* vh, const Matrix& a, const Matrix* basis,
                const Params& p) {
  const double scale = scale_of(a);
  MatrixBuffer<T> scaled(a.rows, a.cols);
  copy(scaled.view(), a);
  for (int64_t i = 0; i < scaled.size(); ++i) scaled[i] = T(double(scaled[i]) / scale);
  one_matrix<T>(u, s, s_stride, vh, scaled.view(), basis, p);
  for (int64_t j = 0; s && j < u.cols; ++j) s[j * s_stride] = T(double(s[j * s_stride]) * scale);
}

// a [m, n] -> u [m, r], and s [r], vh [r, n] where wanted.
template <class T>
void one_matrix(const Matrix& u, T* s, int64_t s_stride, const Matrix* vh, const Matrix& a, const Matrix* basis,
                const Params& p) {
  const int64_t rank = u.cols, l = sketch_width(a.rows, a.cols, rank, basis ? basis->cols : 0, p.oversample);
  if (l == 0) return;
  Span<T> span = search<T>(a, basis, l, p);
  if (!is_moderate<T>(largest_magnitude(span.image.view()))) {
    const double largest = largest_magnitude(a);
    check_finite(largest);
    if (largest > 0.0 && !is_moderate<T>(largest)) {
      one_scaled<T>(u, s, s_stride, vh, a, basis, p);
      return;
    }
  }
  Ritz<T> found = ritz(span.image, rank, vh || span.of_rows);
  if (span.of_rows) {
    copy(u, found.vectors.view());
    if (vh) rotate_basis<T>(vh->transposed(), span.w.view(), found.rotation);
  } else {
    rotate_basis<T>(u, span.w.view(), found.rotation);
    if (vh) copy(vh->transposed(), found.vectors.view());
  }
  for (int64_t j = 0; s && j < rank; ++j) s[j * s_stride] = T(found.s[j]);
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
  draw_sketch(static_cast<float*>(out.data), out.shape[0], out.shape[1], seed, step);
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
  std::vector<const RangeJob*> order;
  for (const RangeJob& job : jobs) order.push_back(&job);
  const auto size = [](const RangeJob* job) { return job->a.rows * job->a.cols; };
  // Large ones first, so that no thread is left alone with one at the end.
  std::stable_sort(order.begin(), order.end(), [&](auto* left, auto* right) { return size(left) > size(right); });
  for_each_matrix(int64_t(jobs.size()), jobs.empty() ? 0 : size(order[0]), [&](int64_t i) {
    const RangeJob& job = *order[size_t(i)];
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
        const Params exact{.oversample = std::min(m, n), .niter = 0};
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
