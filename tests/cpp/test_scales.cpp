// Small dense algorithms at the ends of a dtype's range, and what they do where they cannot end.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "dense_cases.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/orthonormalize.h"

namespace lowrank {
namespace {

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

}  // namespace
}  // namespace lowrank

int main() {
  omp_set_num_threads(1);
  lowrank::every_level([] {
    lowrank::columns_of_any_size<float>();
    lowrank::columns_of_any_size<double>();
    lowrank::giving_up_is_said();
  });
  return lowrank::testing::finish();
}
