// A step at every level against the scalar statements of the header, parameter by parameter, in memory that is exactly
// as large as it has to be, so that a sanitizer sees what is read or written beside it.
#include "lowrank_core/kalman_diag.h"

#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/isa.h"
#include "lowrank_core/philox.h"

namespace lowrank::kalman_diag {
namespace {

constexpr double kUnit = 0x1p-53;

struct Filter {
  int64_t m, n;
  std::vector<float> theta, p, jac, score, new_theta, new_p;

  Filter(int64_t outputs, int64_t size, float p0) : m(outputs), n(size) {
    uint64_t index = 0;
    const auto draw = [&](int64_t count, float low, float high) {
      std::vector<float> x(static_cast<size_t>(count));
      for (float& value : x) value = low + (high - low) * philox::uniform(philox::bits(7, {index++, 0, 0}));
      return x;
    };
    theta = draw(n, -1, 1);
    p = draw(n, 0.5f * p0, p0);
    jac = draw(m * n, -1, 1);
    score = draw(n, -1, 1);
    new_theta.assign(size_t(n), NAN);
    new_p.assign(size_t(n), NAN);
  }

  Block block() {
    Block b{};
    b.theta = row_major(theta.data(), 1, n);
    b.p = row_major(p.data(), 1, n);
    b.jac = row_major(jac.data(), m, n);
    b.score = row_major(score.data(), 1, n);
    b.new_theta = row_major(new_theta.data(), 1, n);
    b.new_p = row_major(new_p.data(), 1, n);
    return b;
  }

  double at(int64_t j, int64_t i) const { return double(jac[size_t(j * n + i)]); }
};

// L⁻¹ [m, m] and w, by the definitions.
struct System {
  std::vector<double> inverse, w;

  explicit System(const Filter& f) : inverse(size_t(f.m * f.m)), w(size_t(f.m)) {
    const int64_t m = f.m;
    std::vector<double> s(size_t(m * m)), t(static_cast<size_t>(m)), half(static_cast<size_t>(m));
    for (int64_t j = 0; j < m; ++j) {
      for (int64_t i = 0; i < f.n; ++i) t[size_t(j)] += f.at(j, i) * f.p[size_t(i)] * f.score[size_t(i)];
      for (int64_t k = 0; k < m; ++k) {
        for (int64_t i = 0; i < f.n; ++i) s[size_t(j * m + k)] += f.at(j, i) * f.p[size_t(i)] * f.at(k, i);
      }
      s[size_t(j * m + j)] += 1.0;
    }
    CHECK(cholesky_upper(s.data(), m, 0.0));
    invert_upper(s.data(), m);
    for (int64_t j = 0; j < m; ++j) {
      for (int64_t k = 0; k <= j; ++k) inverse[size_t(j * m + k)] = s[size_t(k * m + j)];
    }
    for (int64_t j = 0; j < m; ++j) {
      for (int64_t k = 0; k < m; ++k) half[size_t(j)] += inverse[size_t(j * m + k)] * t[size_t(k)];
    }
    for (int64_t k = 0; k < m; ++k) {
      for (int64_t j = 0; j < m; ++j) w[size_t(k)] += inverse[size_t(j * m + k)] * half[size_t(j)];
    }
  }
};

void check_step(int64_t m, int64_t n, float p0) {
  Filter f(m, n, p0);
  CHECK(step_cpu({f.block()}, {.outputs = m, .lr = 0.5}));
  const System system(f);
  double trace = 1.0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) trace += f.p[size_t(i)] * f.at(j, i) * f.at(j, i);
  }
  const double slack = 8.0 * double(m + 1) * std::sqrt(double(n + m + 2)) * kUnit * trace;  // as in docs/numerics.md
  for (int64_t i = 0; i < n; ++i) {
    const double p = f.p[size_t(i)], score = f.score[size_t(i)];
    double leverage = 0.0, norm = 0.0, explained = 0.0, size = std::fabs(score);
    for (int64_t j = 0; j < m; ++j) {
      double y = 0.0;
      for (int64_t k = 0; k <= j; ++k) y += system.inverse[size_t(j * m + k)] * f.at(k, i);
      leverage += p * y * y;
      norm += f.at(j, i) * f.at(j, i);
      explained += f.at(j, i) * system.w[size_t(j)];
      size += std::fabs(f.at(j, i) * system.w[size_t(j)]);
    }
    const double theta = f.theta[size_t(i)] + 0.5 * direction(p, score, explained);
    const double variance = shrunk(p, leverage, norm);
    CHECK(std::fabs(f.new_theta[size_t(i)] - theta) <= 0x1p-24 * std::fabs(theta) + p * size * slack);
    CHECK(std::fabs(f.new_p[size_t(i)] - variance) <= 0x1p-24 * variance + p * slack);
    CHECK(f.new_p[size_t(i)] > 0.0f && f.new_p[size_t(i)] <= f.p[size_t(i)]);
  }
}

void check_statements() {
  CHECK(shrunk(2.0, 0.25) == 1.5 && shrunk(2.0, 0.25, 1.0) == 1.5);
  CHECK(shrunk(1.0, 1.0, 3.0) == 0.25);  // all digits of 1 - s are lost: the bound is what is left
  CHECK(shrunk(1.0, 1.0625, 3.0) == 0.25);
  CHECK(direction(2.0, 3.0, 1.0) == 4.0);
  CHECK(stored(1.0, 2.0f) == 1.0f && stored(0.0, 0.0f) == 0.0f);
  CHECK(stored(1e-60, 1.0f) == FLT_MIN && stored(1e-60, 1e-40f) == 1e-40f);
  CHECK(capped_rate(0.5, 4.0, 1.0) == 0.5 && capped_rate(1.0, 8.0, 1.0) == 0.5);
}

void check_refusals() {
  Filter f(3, 40, 1.0f);
  for (float* bad : {&f.jac[57], &f.score[39], &f.p[0]}) {
    const float before = *bad;
    for (const float value : {NAN, INFINITY, -INFINITY}) {
      *bad = value;
      CHECK(!step_cpu({f.block()}, {.outputs = 3}));
      for (int64_t i = 0; i < f.n; ++i) CHECK(std::isnan(f.new_theta[size_t(i)]) && std::isnan(f.new_p[size_t(i)]));
    }
    *bad = before;
  }
  f.p[5] = -1.0f;
  CHECK(!step_cpu({f.block()}, {.outputs = 3}));
}

}  // namespace
}  // namespace lowrank::kalman_diag

int main() {
  using namespace lowrank;
  kalman_diag::check_statements();
  for (const std::string& level : isa_levels()) {
    set_isa(level);
    kalman_diag::check_refusals();
    for (const int64_t m : {1, 2, 3, 4, 5, 10, 31, 32, 33}) {
      for (const int64_t n : {1, 7, 8, 31, 33, 257}) kalman_diag::check_step(m, n, 0.2f);
    }
    kalman_diag::check_step(4, 4, 100.0f);
  }
  return lowrank::testing::finish();
}
