// The small dense algorithms: vector primitives at every level, Cholesky, QR, eigenvectors, the Jacobi SVD.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/isa.h"
#include "lowrank_core/orthonormalize.h"

namespace lowrank {
namespace {

constexpr double kUnit64 = 0x1p-53, kUnit32 = 0x1p-24;

template <class T>
constexpr double unit() {
  return sizeof(T) == 4 ? kUnit32 : kUnit64;
}

struct Draw {
  uint32_t state = 1;
  double operator()() {
    state = state * 1664525u + 1013904223u;
    return double(state >> 8) * 0x1p-23 - 1.0;
  }
};

template <class T>
MatrixBuffer<T> random(int64_t m, int64_t n, Draw& draw) {
  MatrixBuffer<T> a(m, n);
  for (int64_t i = 0; i < m * n; ++i) a[i] = T(draw());
  return a;
}

template <class T>
MatrixBuffer<T> clone(MatrixBuffer<T>& a) {
  MatrixBuffer<T> b(a.rows(), a.cols());
  std::copy(a.data(), a.data() + a.size(), b.data());
  return b;
}

// Largest entry of |QᵀQ - 1| for the columns of q, in long double.
template <class T>
double defect(MatrixBuffer<T>& q) {
  long double worst = 0;
  for (int64_t i = 0; i < q.cols(); ++i) {
    for (int64_t j = 0; j < q.cols(); ++j) {
      long double sum = i == j ? -1 : 0;
      for (int64_t k = 0; k < q.rows(); ++k) sum += static_cast<long double>(q.at(k, i)) * q.at(k, j);
      worst = std::max(worst, std::abs(sum));
    }
  }
  return double(worst);
}

template <class T>
double norm(MatrixBuffer<T>& a) {
  return std::sqrt(squared_norm(a.view()));
}

// ‖y - Q Qᵀ y‖ / ‖y‖: what of y lies outside the span of q.
template <class T>
double outside(MatrixBuffer<T>& q, MatrixBuffer<T>& y) {
  MatrixBuffer<double> rest(y.rows(), y.cols()), inner(q.cols(), y.cols());
  copy(rest.view(), y.view());
  gemm(inner.view(), q.view().transposed(), y.view());
  gemm(rest.view(), q.view(), inner.view(), {.alpha = -1.0, .beta = 1.0});
  return norm(rest) / std::max(norm(y), 1e-300);
}

void every_level(const std::function<void()>& test) {
  for (const std::string& level : isa_levels()) {
    set_isa(level);
    test();
  }
  set_isa(isa_levels().back());
}

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
      dots.push_back(LRC_AT_LEVEL(dot, x.data(), y.data(), n));
      MatrixBuffer<T> z = clone(y);
      LRC_AT_LEVEL(axpy, z.data(), T(0.75), x.data(), n);
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

// Columns of any size, each its own: powers of two change no bit, and any other size is as sound.
template <class T>
void columns_of_any_size() {
  Draw draw;
  const double bound = 5e-6 / kUnit32 * unit<T>();  // as above
  const int low = sizeof(T) == 4 ? -125 : -1020, high = sizeof(T) == 4 ? 125 : 1020;
  const int lowest = sizeof(T) == 4 ? -140 : -1060;  // subnormal numbers
  const int64_t m = 90, n = 6;
  for (const OrthMethod method : {OrthMethod::kAuto, OrthMethod::kCholQR2, OrthMethod::kHouseholder}) {
    MatrixBuffer<T> y = random<T>(m, n, draw), spare(m, n), plain = clone(y);
    CHECK(orthonormalize_by(method, plain, spare));
    for (const auto& exponents : std::vector<std::vector<int>>{
             {low}, {high}, {0, low, 0, high, 0, low}, {high, low}, {-60, 60, 0}, {-101, 99, 0}, {-401, 399, 0}}) {
      MatrixBuffer<T> scaled(m, n);
      for (int64_t i = 0; i < m * n; ++i) {
        const int exponent = exponents[size_t(i % n) % exponents.size()];
        scaled[i] = T(std::ldexp(double(y[i]), std::clamp(exponent, low, high)));
      }
      CHECK(orthonormalize_by(method, scaled, spare));
      bool same = true;
      for (int64_t i = 0; i < m * n; ++i) same &= std::abs(double(scaled[i]) - double(plain[i])) <= 64 * unit<T>();
      CHECK(same);
    }
    MatrixBuffer<T> tiny(m, n);
    for (int64_t i = 0; i < m * n; ++i) tiny[i] = i % n == 2 ? T(std::ldexp(double(y[i]), lowest)) : y[i];
    CHECK(orthonormalize_by(method, tiny, spare) && defect(tiny) <= bound);
    CHECK(outside(tiny, y) <= 8 * std::sqrt(double(m)) * unit<T>() + 0x1p-8);  // what is left of its 9 to 14 bits
  }
  for (const int exponent : {lowest, low, high}) {
    MatrixBuffer<T> y = random<T>(m, n, draw), spare(m, n), plain = clone(y), scaled(m, n);
    for (int64_t i = 0; i < m * n; ++i) scaled[i] = T(std::ldexp(double(y[i]), exponent));
    for (int64_t i = 0; i < m * n; ++i) plain[i] = T(std::ldexp(double(scaled[i]), -exponent));
    CHECK(orthonormalize_by(OrthMethod::kNewtonSchulz, scaled, spare));
    CHECK(orthonormalize_by(OrthMethod::kNewtonSchulz, plain, spare));
    CHECK(std::equal(plain.data(), plain.data() + m * n, scaled.data()));
  }
}

template <class F>
bool does_not_converge(const F& f) {
  try {
    f();
  } catch (const NotConverged&) {
    return true;
  }
  return false;
}

// One sweep too few is an error, not a worse answer.
void giving_up_is_said() {
  Draw draw;
  const int64_t n = 20;
  MatrixBuffer<double> a = random<double>(n, n, draw), g(n, n), u(n, n), vt(n, n);
  Buffer<double> s(n);
  gram(g.view(), a.view());
  for (const int sweeps : {0, 1}) {
    MatrixBuffer<double> work = clone(g);
    CHECK(does_not_converge([&] { symmetric_eigenvectors(work.data(), n, u.data(), s.data(), sweeps); }));
    MatrixBuffer<double> other = clone(a);
    CHECK(does_not_converge([&] { jacobi_svd(other.data(), n, u.data(), s.data(), vt.data(), 0.0, sweeps); }));
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
    lowrank::columns_of_any_size<float>();
    lowrank::columns_of_any_size<double>();
    lowrank::giving_up_is_said();
    lowrank::eigenvectors();
    lowrank::singular_values();
  });
  lowrank::jacobi_does_not_depend_on_threads();
  return lowrank::testing::finish();
}
