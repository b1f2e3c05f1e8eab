// Normal numbers against the C library in long double, at every level, and their distribution.
#include "lowrank_core/normal.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "lowrank_core/isa.h"
#include "lowrank_core/view.h"

namespace lowrank::normal {
namespace {

constexpr double kUnit = 0x1p-53;

// Roundings: of the logarithm's parts, which the root halves, of the angle and its sine, of root and product.
constexpr double kMost = 8 * kUnit;

long double exact(uint32_t first, uint32_t second) {
  const long double u = (static_cast<long double>(first) + 1) / 0x1p32L;
  const int64_t place = std::abs(int64_t(second) - (int64_t(1) << 31)) - (int64_t(1) << 30);
  const long double angle = 3.14159265358979323846264338327950288L * static_cast<long double>(place) / 0x1p31L;
  return std::sqrt(-2 * std::log(u)) * std::sin(angle);
}

void check_number(uint32_t first, uint32_t second) {
  const long double expected = exact(first, second);
  CHECK(std::abs(static_cast<long double>(from_words(first, second)) - expected) <= kMost * std::abs(expected));
}

void numbers_are_right_to_a_few_units() {
  const uint32_t ends[] = {0,           1,           2,           (1u << 30) - 1, 1u << 30,    (1u << 30) + 1,
                           0x7FFFFFFFu, 0x80000000u, 0x80000001u, 0xB504F333u,    0xB504F334u, 0xBFFFFFFFu,
                           0xC0000000u, 0xC0000001u, 0xFFFFFFFEu, 0xFFFFFFFFu};
  for (const uint32_t first : ends) {
    for (const uint32_t second : ends) check_number(first, second);
  }
  for (uint64_t i = 0; i < 100000; ++i) {
    const philox::Block block = philox::block(5, i, 99, 0);
    check_number(block.v[0], block.v[1]);
    check_number(block.v[2] >> (i % 32), block.v[3] >> (i / 32 % 32));  // near the ends
  }
  CHECK(from_words(0, 0) == std::sqrt(64.0 * std::log(2.0)) && from_words(0, 1u << 31) == -from_words(0, 0));
}

template <class T>
View row_of(std::vector<T>& x) {
  View view{.data = x.data(), .dtype = dtype_of<T>::value, .rank = 2};
  view.shape = {1, int64_t(x.size())};
  view.stride = {int64_t(x.size()), 1};
  return view;
}

template <class T>
void every_level_fills_the_same() {
  constexpr int64_t count = 7 * 1831;  // more than a task, and odd
  const std::string before = name(isa());
  for (const std::string& level : isa_levels()) {
    set_isa(level);
    std::vector<T> out(count), other(count / 3);
    fill({{row_of(other), 5, 1.0}, {row_of(out), 12, 3.0}});  // of a list, each as alone
    for (int64_t i = 0; i < count; ++i) {
      const philox::Position at{uint64_t(2 * i), kStream, 0}, next{uint64_t(2 * i + 1), kStream, 0};
      CHECK(out[size_t(i)] == T(from_words(philox::bits(12, at), philox::bits(12, next)) / 3.0));
      if (i < int64_t(other.size())) {
        CHECK(other[size_t(i)] == T(from_words(philox::bits(5, at), philox::bits(5, next))));
      }
    }
  }
  set_isa(before);
}

// Moments within 5 deviations, Kolmogorov and Smirnov's distance at 1e-6, and the tails beyond 3, 4 and 5.
void they_are_normal() {
  constexpr int64_t count = 1 << 22;
  std::vector<double> x(count);
  fill({{row_of(x), 3, 1.0}});
  double powers[5] = {};
  for (const double value : x) {
    for (int p = 1; p <= 4; ++p) powers[p] += std::pow(value, p) / double(count);
  }
  const double deviation = 1.0 / std::sqrt(double(count));
  CHECK(std::abs(powers[1]) < 5 * deviation);
  CHECK(std::abs(powers[2] - 1.0) < 5 * std::sqrt(2.0) * deviation);
  CHECK(std::abs(powers[3]) < 5 * std::sqrt(15.0) * deviation);
  CHECK(std::abs(powers[4] - 3.0) < 5 * std::sqrt(96.0) * deviation);
  std::sort(x.begin(), x.end());
  double distance = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const double below = 0.5 * std::erfc(-x[size_t(i)] * std::sqrt(0.5));
    distance = std::max({distance, below - double(i) / double(count), double(i + 1) / double(count) - below});
  }
  CHECK(distance < 2.69 * deviation);
  for (const double far : {3.0, 4.0, 5.0}) {
    const double expected = double(count) * std::erfc(far * std::sqrt(0.5));
    const double beyond = double(std::count_if(x.begin(), x.end(), [=](double v) { return std::abs(v) > far; }));
    CHECK(std::abs(beyond - expected) < 5 * std::sqrt(expected));
  }
}

}  // namespace
}  // namespace lowrank::normal

int main() {
  lowrank::normal::numbers_are_right_to_a_few_units();
  lowrank::normal::every_level_fills_the_same<float>();
  lowrank::normal::every_level_fills_the_same<double>();
  lowrank::normal::they_are_normal();
  return lowrank::testing::finish();
}
