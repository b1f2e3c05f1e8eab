// The small dense algorithms: vector primitives at every level, Cholesky, QR, eigenvectors, the Jacobi SVD.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "dense_cases.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/isa.h"
#include "lowrank_core/orthonormalize.h"

namespace lowrank {
namespace {

// ---- vector primitives -------------------------------------------------------------------------------------------

template <class T>
void primitives() {
  Draw draw;
  for (const int64_t n : {0, 1, 3, 15, 16, 17, 31, 32, 33, 64, 97}) {
    MatrixBuffer<T> x = random<T>(1, n, draw), y = random<T>(1, n, draw);
    long double exact = 0, size = 0;
    for (int64_t i = 0; i < n; ++i) {
      exact += static_cast<long double>(x[i]) * y[i];
      size += std::abs(static_cast<long double>(x[i]) * y[i]);
    }
    std::vector<double> dots;
    every_level([&] {
      dots.push_back(vectors<T>().dot(x.data(), y.data(), n));
      MatrixBuffer<T> z = clone(y);
      vectors<T>().axpy(z.data(), T(0.75), x.data(), n);
      bool equal = true;
      for (int64_t i = 0; i < n; ++i) equal &= z[i] == T(y[i] + T(T(0.75) * x[i]));
      CHECK(equal);
    });
    CHECK(std::abs(dots[0] - double(exact)) <= double(n) * kUnit64 * double(size));  // float64 for either type
    for (const double result : dots) CHECK(result == dots[0]);
  }
}

void sums_and_copies() {
  Draw draw;
  double not_finite[4] = {1.0, NAN, 2.0, 3.0};
  for (const int64_t n : {1, 7, 64, 300}) {
    MatrixBuffer<float> a = random<float>(211, n, draw);
    long double exact = 0;
    for (int64_t i = 0; i < a.size(); ++i) exact += static_cast<long double>(a[i]) * a[i];
    for (const Matrix& m : {a.view(), a.view().transposed()}) {
      const double sum = squared_norm(m);
      CHECK(std::abs(sum - double(exact)) <= 4 * std::sqrt(double(a.size())) * kUnit64 * double(exact));
      omp_set_num_threads(3);
      CHECK(squared_norm(m) == sum);
      omp_set_num_threads(1);
    }
    MatrixBuffer<bfloat16> half(n, 211);
    copy(half.view(), a.view().transposed());
    bool equal = true;
    for (int64_t i = 0; i < 211; ++i) {
      for (int64_t j = 0; j < n; ++j) equal &= half.at(j, i).bits == to_bfloat16(a.at(i, j)).bits;
    }
    CHECK(equal);
    MatrixBuffer<double> wide(n, 211), divided(n, 211);
    for (int64_t i = 0; i < wide.size(); ++i) wide[i] = 1.0 + 0x1p-8 + std::copysign(0x1p-40, draw());
    copy(half.view(), wide.view());
    for (int64_t i = 0; i < wide.size(); ++i) equal &= half[i].bits == (wide[i] > 1.0 + 0x1p-8 ? 0x3F81 : 0x3F80);
    CHECK(equal);  // one rounding: a float, which is halfway between two of them, would be rounded to even
    copy_divided(divided.view(), wide.view(), 0x1p-1000);
    for (int64_t i = 0; i < wide.size(); ++i) equal &= divided[i] == std::ldexp(wide[i], 1000);
    CHECK(equal);
    const std::vector<double> sizes = column_magnitudes(a.view()), turned = column_magnitudes(a.view().transposed());
    for (int64_t j = 0; j < n; ++j) equal &= sizes[size_t(j)] == largest_magnitude(a.view().block(0, j, 211, 1));
    for (int64_t i = 0; i < 211; ++i) equal &= turned[size_t(i)] == largest_magnitude(a.view().block(i, 0, 1, n));
    CHECK(equal && std::isnan(column_magnitudes(row_major(not_finite, 2, 2))[1]));
  }
}

// ---- factorizations ----------------------------------------------------------------------------------------------

void cholesky() {
  Draw draw;
  for (const int64_t n : {1, 2, 17, 64}) {
    MatrixBuffer<double> y = random<double>(n + 20, n, draw), g(n, n), product(n, n);
    gram(g.view(), y.view());
    MatrixBuffer<double> r = clone(g);
    CHECK(cholesky_upper(r.data(), n, 0.0));
    bool upper = true;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < i; ++j) upper &= r.at(i, j) == 0.0;
    }
    CHECK(upper);
    gemm(product.view(), r.view().transposed(), r.view());
    for (int64_t i = 0; i < n * n; ++i) product[i] -= g[i];
    CHECK(norm(product) <= 4 * double(n + 1) * kUnit64 * norm(g));  // Higham 2002, theorem 10.3

    MatrixBuffer<double> inverse = clone(r);
    invert_upper(inverse.data(), n);
    gemm(product.view(), r.view(), inverse.view());
    for (int64_t i = 0; i < n; ++i) product.at(i, i) -= 1.0;
    CHECK(norm(product) <= 4 * double(n + 1) * kUnit64 * norm(r) * norm(inverse));
  }
  double indefinite[4] = {1, 2, 2, 1}, small[4] = {1, 0, 0, 1e-9}, nan[1] = {NAN};
  CHECK(!cholesky_upper(indefinite, 2, 0.0));
  CHECK(!cholesky_upper(small, 2, 1e-8));
  CHECK(!cholesky_upper(nan, 1, 0.0));
}

template <class T>
void orthonormal_columns() {
  Draw draw;
  const double bound = 5e-6 / kUnit32 * unit<T>();  // 5e-6 in float32, as documented
  for (const auto& [m, n] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {9, 1}, {33, 33}, {97, 16}, {300, 65}}) {
    for (const OrthMethod method :
         {OrthMethod::kAuto, OrthMethod::kCholQR2, OrthMethod::kHouseholder, OrthMethod::kNewtonSchulz}) {
      MatrixBuffer<T> y = random<T>(m, n, draw), spare(m, n);
      for (int64_t i = 0; i < n; ++i) y.at(i, i) += T(4);  // well-conditioned
      MatrixBuffer<T> q = clone(y);
      CHECK(orthonormalize_by(method, q, spare));
      CHECK(q.rows() == m && q.cols() == n && defect(q) <= bound);
      CHECK(outside(q, y) <= 8 * std::sqrt(double(m)) * unit<T>());
    }
    // Rank 1 of n: what is missing is filled.
    MatrixBuffer<T> left = random<T>(m, 1, draw), right = random<T>(1, n, draw), y(m, n), spare(m, n);
    gemm(y.view(), left.view(), right.view());
    MatrixBuffer<T> q = clone(y), cholesky = clone(y);
    orthonormalize(q, spare);
    CHECK(defect(q) <= bound && outside(q, y) <= 8 * std::sqrt(double(m)) * unit<T>());
    CHECK(orthonormalize_by(OrthMethod::kCholQR2, cholesky, spare) == (n == 1));
    // One column again and again, along an axis: what is left of it shrinks to nothing, and its sign is kept.
    for (int64_t i = 0; i < m * n; ++i) y[i] = i / n == m / 2 ? T(3) : T(0);
    q = clone(y);
    orthonormalize(q, spare);
    CHECK(defect(q) <= bound && outside(q, y) <= 8 * unit<T>() && q.at(m / 2, 0) > T(0));
    MatrixBuffer<T> zero(m, n);
    std::fill(zero.data(), zero.data() + m * n, T(0));
    orthonormalize(zero, spare);
    CHECK(defect(zero) <= bound);
  }
}

void eigenvectors() {
  Draw draw;
  for (const int64_t n : {1, 2, 3, 33, 64, 90, 200}) {  // the last one's rotations are applied in several batches
    MatrixBuffer<double> y = random<double>(n, n, draw), a(n, n), rows(n, n), rest(n, n);
    for (const int64_t rank : {n, n / 2}) {
      gemm(a.view(), y.view().block(0, 0, n, rank), y.view().block(0, 0, n, rank).transposed());
      MatrixBuffer<double> work = clone(a);
      Buffer<double> values(n);
      symmetric_eigenvectors(work.data(), n, rows.data(), values.data());
      MatrixBuffer<double> columns(n, n);
      copy(columns.view(), rows.view().transposed());
      CHECK(defect(columns) <= 20 * double(n) * kUnit64);
      gemm(rest.view(), a.view(), columns.view());  // A V = V D
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) rest.at(i, j) -= columns.at(i, j) * values[j];
      }
      CHECK(norm(rest) <= 20 * double(n) * kUnit64 * norm(a));
    }
  }
}

void check_svd(MatrixBuffer<double>& a) {
  const int64_t n = a.rows();
  MatrixBuffer<double> work = clone(a), u(n, n), vt(n, n), scaled(n, n), rest = clone(a);
  Buffer<double> s(n);
  jacobi_svd(work.data(), n, u.data(), s.data(), vt.data(), 0.0);
  MatrixBuffer<double> v(n, n);
  copy(v.view(), vt.view().transposed());
  CHECK(defect(u) <= 20 * double(n) * kUnit64 && defect(v) <= 20 * double(n) * kUnit64);
  bool ordered = true;
  for (int64_t j = 0; j < n; ++j) {
    ordered &= s[j] >= 0.0 && (j == 0 || s[j] <= s[j - 1]);
    for (int64_t i = 0; i < n; ++i) scaled.at(i, j) = u.at(i, j) * s[j];
  }
  CHECK(ordered);
  gemm(rest.view(), scaled.view(), vt.view(), {.alpha = -1.0, .beta = 1.0});
  CHECK(norm(rest) <= 20 * double(n) * kUnit64 * norm(a));
}

void singular_values() {
  Draw draw;
  for (const int64_t n : {1, 2, 5, 31, 63, 64, 65}) {
    MatrixBuffer<double> a = random<double>(n, n, draw);
    check_svd(a);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) a.at(i, j) *= std::pow(0.5, double(j));  // graded columns
    }
    check_svd(a);
    for (int64_t i = 0; i < n; ++i) {  // and rows, too: over 32 decades in all
      for (int64_t j = 0; j < n; ++j)
        a.at(i, j) = draw() * std::pow(10.0, 16 * draw()) * std::pow(10.0, double(-i % 17));
    }
    check_svd(a);
    MatrixBuffer<double> half = random<double>(n, (n + 1) / 2, draw), low(n, n);
    gemm(low.view(), half.view(), half.view().transposed());
    check_svd(low);
    std::fill(a.data(), a.data() + n * n, 0.0);
    check_svd(a);
    for (int64_t i = 0; i < n; ++i) a.at(i, n - 1 - i) = 3.0;  // all values equal
    check_svd(a);
  }
}

void jacobi_does_not_depend_on_threads() {
  Draw draw;
  const int64_t n = 90;
  MatrixBuffer<double> a = random<double>(n, n, draw);
  std::vector<std::vector<double>> results;
  for (const int threads : {1, 2, 3}) {
    omp_set_num_threads(threads);
    MatrixBuffer<double> work = clone(a), u(n, n), vt(n, n);
    std::vector<double> s(n);
    jacobi_svd(work.data(), n, u.data(), s.data(), vt.data(), 0.0);
    s.insert(s.end(), u.data(), u.data() + n * n);
    s.insert(s.end(), vt.data(), vt.data() + n * n);
    results.push_back(s);
  }
  omp_set_num_threads(1);
  CHECK(results[0] == results[1] && results[0] == results[2]);
}

}  // namespace
}  // namespace lowrank

int main() {
  omp_set_num_threads(1);
  lowrank::primitives<float>();
  lowrank::primitives<double>();
  lowrank::sums_and_copies();
  lowrank::cholesky();
  lowrank::every_level([] {
    lowrank::orthonormal_columns<float>();
    lowrank::orthonormal_columns<double>();
    lowrank::eigenvectors();
    lowrank::singular_values();
  });
  lowrank::jacobi_does_not_depend_on_threads();
  return lowrank::testing::finish();
}
