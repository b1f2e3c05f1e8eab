// Angles, plans and the passes of the fast transforms, at every level, against sums in long double.
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "lowrank_core/angle.h"
#include "lowrank_core/dct_select.h"
#include "lowrank_core/fft.h"
#include "lowrank_core/isa.h"

namespace lowrank {
namespace {

constexpr double kUnit64 = 0x1p-53, kUnit32 = 0x1p-24;
constexpr long double kPi = 3.14159265358979323846264338327950288L;

template <class T>
constexpr double unit() {
  return sizeof(T) == 4 ? kUnit32 : kUnit64;
}

void angles_are_exact_where_they_can_be() {
  for (const int64_t n : {4, 8, 12, 4096, 1 << 20}) {
    const CirclePoint zero = circle_point(0, n), quarter = circle_point(n / 4, n), half = circle_point(n / 2, n);
    CHECK(zero.cos == 1.0 && zero.sin == 0.0);
    CHECK(quarter.cos == 0.0 && quarter.sin == 1.0);
    CHECK(half.cos == -1.0 && half.sin == 0.0);
  }
  for (const int64_t n : {1, 2, 3, 5, 16, 1000, 4093}) {
    for (int64_t t = -2 * n; t <= 3 * n; ++t) {
      const CirclePoint p = circle_point(t, n), whole = circle_point(t + n, n), mirrored = circle_point(-t, n);
      const long double angle = 2 * kPi * static_cast<long double>((t % n + n) % n) / static_cast<long double>(n);
      CHECK(std::abs(double(p.cos - std::cos(angle))) <= 2 * kUnit64);
      CHECK(std::abs(double(p.sin - std::sin(angle))) <= 2 * kUnit64);
      CHECK(p.cos == whole.cos && p.sin == whole.sin && p.cos == mirrored.cos && p.sin == -mirrored.sin);
    }
  }
}

void entries_keep_their_digits_for_long_rows() {
  const int64_t n = 1 << 20;  // k (2i + 1) reaches 2^41
  for (const int64_t k : {int64_t(0), int64_t(1), n / 3, n - 1}) {
    for (const int64_t i : {int64_t(0), n / 5, n - 1}) {
      const long double turns = static_cast<long double>(k * (2 * i + 1) % (4 * n)) / static_cast<long double>(2 * n);
      const long double exact = std::sqrt((k == 0 ? 1.0L : 2.0L) / static_cast<long double>(n)) * std::cos(kPi * turns);
      CHECK(std::abs(double(dct2_entry(n, k, i) - exact)) <= 8 * kUnit64 / std::sqrt(double(n)));
    }
  }
}

void lengths_are_factored() {
  CHECK(fft::largest_prime(1) == 1 && fft::largest_prime(2) == 2 && fft::largest_prime(11008) == 43);
  CHECK(fft::smooth_length(1) == 1 && fft::smooth_length(7) == 8 && fft::smooth_length(2041) == 2048);
  for (int64_t n = 1; n <= 200; ++n) {
    const fft::Plan<double> plan = fft::make_plan<double>(n);
    std::set<int64_t> places;
    int64_t product = 1;
    for (int64_t k = 0; k < n; ++k) places.insert(plan.place[k]);
    for (int s = 0; s < plan.stages; ++s) product *= plan.stage[s].radix;
    CHECK(int64_t(places.size()) == n && *places.begin() == 0 && *places.rbegin() == n - 1);
    CHECK(product == plan.length && plan.chirped == (fft::largest_prime(n) > fft::kLargestRadix));
  }
}

template <class T>
View matrix_view(T* data, int64_t m, int64_t n) {
  View view{.data = data, .dtype = dtype_of<T>::value, .rank = 2};
  view.shape = {m, n};
  view.stride = {n, 1};
  return view;
}

double entry(dct_select::Basis basis, int64_t n, int64_t k, int64_t i) {
  if (basis == dct_select::Basis::kIdentity) return k == i ? 1.0 : 0.0;
  if (basis == dct_select::Basis::kHadamard)
    return dct_select::hadamard_sign(uint64_t(k), uint64_t(i)) / std::sqrt(double(n));
  return basis == dct_select::Basis::kDct2 ? dct2_entry(n, k, i) : dct2_entry(n, i, k);
}

// Largest error over the norm of the row, in units.
template <class T>
double worst(dct_select::Basis basis, dct_select::Method method, int64_t n) {
  const int64_t m = 19;
  std::vector<T> x(size_t(m * n)), y(x.size());
  uint32_t state = 1;
  for (T& value : x) {
    state = state * 1664525u + 1013904223u;
    value = T(double(state >> 8) * 0x1p-23 - 1.0);
  }
  dct_select::transform_cpu(matrix_view(y.data(), m, n), matrix_view(x.data(), m, n), basis, method);
  long double largest = 0;
  for (int64_t row = 0; row < m; ++row) {
    const T *const in = x.data() + row * n, *const out = y.data() + row * n;
    long double norm = 0, error = 0;
    for (int64_t i = 0; i < n; ++i) norm += static_cast<long double>(in[i]) * in[i];
    for (int64_t k = 0; k < n; ++k) {
      long double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += static_cast<long double>(entry(basis, n, k, i)) * in[i];
      error += (sum - out[k]) * (sum - out[k]);
    }
    largest = std::max(largest, std::sqrt(error / norm));
  }
  return double(largest) / unit<T>();
}

// Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., theorem 24.2: at most about 7 u for each halving,
// four more for the steps around it; a convolution is two transforms of up to four times the length. Products: n + 2.
double bound(dct_select::Method method, int64_t n) {
  if (method == dct_select::Method::kGemm) return double(n) + 2;
  const double steps = std::log2(double(n)) + 4;
  return 8 * (fft::largest_prime(n) > fft::kLargestRadix ? 2 * (steps + 2) + 3 : steps);
}

void transforms_are_those_of_their_matrix() {
  using dct_select::Basis;
  using dct_select::Method;
  for (const std::string& level : isa_levels()) {
    set_isa(level);
    for (const int64_t n : {1, 2, 3, 4, 6, 8, 11, 14, 30, 34, 43, 61, 64, 67, 98, 134, 256, 330}) {
      for (const Basis basis : {Basis::kDct2, Basis::kDct3, Basis::kIdentity, Basis::kHadamard}) {
        if (basis == Basis::kHadamard && (n & (n - 1)) != 0) continue;
        for (const Method method : {Method::kFft, Method::kGemm}) {
          CHECK(worst<double>(basis, method, n) <= bound(method, n));
          CHECK(worst<float>(basis, method, n) <= bound(method, n));
        }
      }
    }
  }
}

void atoms_are_ranked_in_a_total_order() {
  const double nan = std::nan("");
  CHECK(dct_select::ranks_before(2.0, 9, 1.0, 0) && !dct_select::ranks_before(1.0, 0, 2.0, 9));
  CHECK(dct_select::ranks_before(1.0, 3, 1.0, 4) && !dct_select::ranks_before(1.0, 4, 1.0, 3));
  CHECK(!dct_select::ranks_before(1.0, 3, 1.0, 3));
  CHECK(dct_select::ranks_before(0.0, 9, nan, 0) && !dct_select::ranks_before(nan, 0, 0.0, 9));
  CHECK(dct_select::ranks_before(nan, 1, nan, 2) && !dct_select::ranks_before(nan, 2, nan, 1));
}

// <forward(x), y> = <x, back(y)> for the maps at the ends of a transform.
void the_maps_back_are_transposed() {
  using Quad = dct_select::Quad<double>;
  const double c = 0.6, s = 0.3;
  const Quad x{{0.1, -0.7}, {0.4, 0.9}}, y{{-0.2, 0.8}, {0.5, -0.3}};
  const auto dot = [](const Quad& a, const Quad& b) {
    return a.k.first * b.k.first + a.k.second * b.k.second + a.m.first * b.m.first + a.m.second * b.m.second;
  };
  CHECK(std::abs(dot(dct_select::unpacked(x, c, s), y) - dot(x, dct_select::packed(y, c, s))) <= 16 * kUnit64);
  const Quad turned_x{dct_select::turned(x.k, c, s), dct_select::turned(x.m, s, c)};
  const Quad turned_y{dct_select::turned(y.k, c, s), dct_select::turned(y.m, s, c)};  // symmetric
  CHECK(std::abs(dot(turned_x, y) - dot(x, turned_y)) <= 16 * kUnit64);
}

}  // namespace
}  // namespace lowrank

int main() {
  using namespace lowrank;
  angles_are_exact_where_they_can_be();
  entries_keep_their_digits_for_long_rows();
  lengths_are_factored();
  transforms_are_those_of_their_matrix();
  atoms_are_ranked_in_a_total_order();
  the_maps_back_are_transposed();
  return testing::finish();
}
