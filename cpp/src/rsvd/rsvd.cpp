#include "lowrank_core/rsvd.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "lowrank_core/dense.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/parallel.h"
#include "rsvd/parts.h"

namespace lowrank::rsvd {
namespace {

constexpr int64_t kSignRows = 256;  // of u that one task looks at

// The signs that the columns of u have by the sign rule.
template <class T>
std::vector<T> signs(const Matrix& u) {
  MatrixBuffer<T> largest((u.rows + kSignRows - 1) / kSignRows, u.cols);
  parallel_chunks(u.rows, kSignRows, [&](int64_t begin, int64_t end) {
    T* const kept = largest.row(begin / kSignRows);
    std::fill(kept, kept + u.cols, T(0));
    for (int64_t i = begin; i < end; ++i) {
      const T* const row = u.as<T>() + i * u.row_stride;
      for (int64_t j = 0; j < u.cols; ++j) kept[j] = dominant(kept[j], row[j * u.col_stride]);
    }
  });
  std::vector<T> sign;
  for (int64_t j = 0; j < u.cols; ++j) {
    T kept = T(0);
    for (int64_t part = 0; part < largest.rows(); ++part) kept = dominant(kept, largest.at(part, j));
    sign.push_back(sign_of(kept));
  }
  return sign;
}

// The sign rule for the columns of u; the rows of vh follow if there are any.
template <class T>
void fix_signs(const Matrix& u, const Matrix* vh) {
  const std::vector<T> sign = signs<T>(u);
  parallel_chunks(u.rows, kSignRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* const row = u.as<T>() + i * u.row_stride;
      for (int64_t j = 0; j < u.cols; ++j) row[j * u.col_stride] *= sign[size_t(j)];
    }
  });
  parallel_for(vh ? vh->rows : 0, [&](int64_t j) {
    T* const row = vh->as<T>() + j * vh->row_stride;
    for (int64_t i = 0; sign[size_t(j)] < T(0) && i < vh->cols; ++i) row[i * vh->col_stride] *= T(-1);
  });
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

template <class T>
void one_matrix(const Matrix& u, T* s, int64_t s_stride, const Matrix* vh, const Matrix& a, const Matrix* basis,
                const Params& p);

// The same for a matrix of very small or very large numbers, by way of a copy whose largest is near 1.
template <class T>
void one_scaled(const Matrix& u, T* s, int64_t s_stride, const Matrix* vh, const Matrix& a, double largest,
                const Matrix* basis, const Params& p) {
  Scaled<T> scaled(a, std::ilogb(largest));
  one_matrix<T>(u, s, s_stride, vh, scaled.values.view(), basis, p);
  if (s) multiply_all(s, s_stride, u.cols, scaled.exponent);
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
      one_scaled<T>(u, s, s_stride, vh, a, largest, basis, p);
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

// ---- the SVD of a product ----------------------------------------------------------------------------------------

// A product b a = 2^exponent b' a', in which column j of b' and row j of a' are as long as each other, powers of two
// apart, and the longest pair near 1.
template <class T>
struct Balanced {
  MatrixBuffer<T> b, a;
  int exponent;
};

// Of the largest entry of every column. Throws NotFinite.
std::vector<int> column_exponents(const Matrix& a) {
  std::vector<int> exponents;
  for (const double largest : column_magnitudes(a)) exponents.push_back(exponent_of(largest));
  return exponents;
}

// None where all columns of b and rows of a are of such size that their products need no care.
template <class T>
std::optional<Balanced<T>> balance(const Matrix& b, const Matrix& a) {
  constexpr int usual = sizeof(T) == 4 ? 30 : 200;
  const std::vector<int> of_b = column_exponents(b), of_a = column_exponents(a.transposed());
  const auto is_usual = [](int e) { return e == kZero || std::abs(e) <= usual; };
  if (std::all_of(of_b.begin(), of_b.end(), is_usual) && std::all_of(of_a.begin(), of_a.end(), is_usual))
    return std::nullopt;
  int longest = kZero;
  for (size_t j = 0; j < of_b.size(); ++j) longest = std::max(longest, of_b[j] + of_a[j]);
  Balanced<T> out{MatrixBuffer<T>(b.rows, b.cols), MatrixBuffer<T>(a.rows, a.cols), longest > kZero / 2 ? longest : 0};
  const Matrix columns = b.transposed(), new_columns = out.b.view().transposed();
  for (int64_t j = 0; j < b.cols; ++j) {
    const int eb = of_b[size_t(j)], ea = of_a[size_t(j)], below = eb + ea - longest;
    const bool zero = eb == kZero || ea == kZero;  // then so is the other one, divided by infinity
    const double by = zero ? HUGE_VAL : std::ldexp(1.0, eb - below / 2);
    const double also_by = zero ? HUGE_VAL : std::ldexp(1.0, ea - (below - below / 2));
    copy_divided(new_columns.block(j, 0, 1, b.rows), columns.block(j, 0, 1, b.rows), by);
    copy_divided(out.a.view().block(j, 0, 1, a.cols), a.block(j, 0, 1, a.cols), also_by);
  }
  return out;
}

// u [m, r], s [r], vh [r, n] of left right, [m, k] and [k, n], of moderate size.
template <class T>
void factor_product(const Matrix& u, T* s, int64_t s_stride, const Matrix& vh, const Matrix& left,
                    const Matrix& right) {
  // With b = Qb Rb and Bᵀ := aᵀ Rbᵀ [n, k], the product is Qb B.
  const int64_t m = left.rows, n = right.cols, k = left.cols, rank = u.cols;
  if (k > std::min(m, n)) {  // the product is smaller than its factors: form it
    MatrixBuffer<T> product(m, n);
    gemm(product.view(), left, right);
    const Params exact{.oversample = std::min(m, n), .niter = 0};
    return one_matrix<T>(u, s, s_stride, &vh, product.view(), nullptr, exact);
  }
  MatrixBuffer<T> qb(m, k), spare(m, k), rb(k, k), bt(n, k);
  copy(qb.view(), left);
  orthonormalize(qb, spare);
  gemm(rb.view(), qb.view().transposed(), left);
  gemm(bt.view(), right.transposed(), rb.view().transposed());
  SmallSvd svd = small_svd(bt);
  rotate_basis<T>(u, qb.view(), svd.left);
  for (int64_t j = 0; j < rank; ++j) s[j * s_stride] = T(svd.s[j]);
  rotate_basis<T>(vh.transposed(), bt.view(), svd.right);
  fix_signs<T>(u, &vh);
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
  for_each_job(jobs, [&](size_t i) {
    const RangeJob& job = jobs[i];
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
      const Matrix left = b.matrix(i), right = a.matrix(i), out = u.matrix(i), out_vh = vh.matrix(i);
      T* const values = vector_of<T>(s, i);
      const int64_t stride = s.stride[size_t(s.rank - 1)];
      if (out.cols == 0) return;
      std::optional<Balanced<T>> balanced = balance<T>(left, right);
      if (!balanced) return factor_product<T>(out, values, stride, out_vh, left, right);
      factor_product<T>(out, values, stride, out_vh, balanced->b.view(), balanced->a.view());
      multiply_all(values, stride, out.cols, balanced->exponent);
    });
  });
}

bool orthonormalize_cpu(const View& q, const View& y, OrthMethod method) {
  bool sound = true;
  with_work_type(y.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t i = 0; i < y.batch() && sound; ++i) {
      const Matrix from = y.matrix(i);
      check_finite(largest_magnitude(from));
      MatrixBuffer<T> work(from.rows, from.cols), spare(from.rows, from.cols);
      copy(work.view(), from);
      sound = orthonormalize_by(method, work, spare);
      copy(q.matrix(i), work.view());
    }
  });
  return sound;
}

}  // namespace lowrank::rsvd
