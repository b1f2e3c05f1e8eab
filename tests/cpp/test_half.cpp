// Half precision: every rounding, from float and from double, against a search in the list of all numbers.
#include "lowrank_core/half.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"

namespace lowrank {
namespace {

// Nearest representable value by search in the sorted list of all finite ones, ties to the even pattern.
template <class Half>
struct Table {
  std::vector<std::pair<double, uint16_t>> values;  // non-negative, ascending: the patterns ascend, too

  Table(uint16_t infinity) {
    for (uint32_t bits = 0; bits < infinity; ++bits)
      values.push_back({double(to_float(Half{uint16_t(bits)})), uint16_t(bits)});
    // What would come next if the exponent went on: halfway to it and beyond rounds to infinity.
    const double step = values[infinity - 1].first - values[infinity - 2].first;
    values.push_back({values.back().first + step, infinity});
  }

  uint16_t round(double x) const {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const double size = std::abs(x);
    if (size >= values.back().first) return sign | values.back().second;
    const auto above = std::upper_bound(values.begin(), values.end(), std::pair<double, uint16_t>(size, 0xFFFF));
    const auto below = above - 1;
    const double down = size - below->first, up = above->first - size;
    const bool take_below = down < up || (down == up && below->second % 2 == 0);
    return sign | (take_below ? below->second : above->second);
  }
};

template <class Half, class Convert>
void rounding_is_to_nearest_even(uint16_t infinity, const Convert& convert) {
  const Table<Half> table(infinity);
  const auto agree = [&](float x) { return convert(x).bits == table.round(x); };
  bool exact = true, nearest = true;
  for (size_t i = 0; i < table.values.size(); ++i) {
    const float value = float(table.values[i].first);
    if (i + 1 == table.values.size()) break;
    exact &= convert(value).bits == table.values[i].second && convert(-value).bits == (table.values[i].second | 0x8000);
    const float middle = float(0.5 * (table.values[i].first + table.values[i + 1].first));
    for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)})
      nearest &= agree(x) && agree(-x);
  }
  uint32_t state = 1;
  for (int i = 0; i < 200000; ++i) {  // any finite float
    state = state * 1664525u + 1013904223u;
    const float x = bits_float(state);
    if (std::isfinite(x)) nearest &= agree(x);
  }
  CHECK(exact);
  CHECK(nearest);
  CHECK(convert(INFINITY).bits == infinity && convert(-INFINITY).bits == (infinity | 0x8000));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(to_float(convert(nan))) && std::isnan(to_float(convert(-nan))));
  CHECK(std::isnan(to_float(convert(bits_float(0x7F800001u)))));  // a signalling NaN whose payload is cut off
}

// Of a double: near the middle of two neighbours a float cannot tell which one is nearer.
template <class Half>
void a_double_is_rounded_once(uint16_t infinity) {
  const Table<Half> table(infinity);
  const auto agree = [&](double x) { return Store<Half>::from(x).bits == table.round(x); };
  bool nearest = true, twice = true;
  for (size_t i = 0; i + 1 < table.values.size(); ++i) {
    const double middle = 0.5 * (table.values[i].first + table.values[i + 1].first);
    for (const double x : {middle, std::nextafter(middle, 0.0), std::nextafter(middle, HUGE_VAL)}) {
      nearest &= agree(x) && agree(-x);
      twice &= Store<Half>::from(float(x)).bits == table.round(x);
    }
  }
  CHECK(nearest);
  CHECK(!twice);  // that two roundings would be seen
  for (const double x : {0.0, 0x1p-1074, 1e-300, 0x1p-149, 0x1.8p-150, 1e300, 0x1.fffffefffffffp127, 0x1.ffffffp127}) {
    CHECK(agree(x) && agree(-x));
  }
  CHECK(Store<Half>::from(HUGE_VAL).bits == infinity && Store<Half>::from(-HUGE_VAL).bits == (infinity | 0x8000));
  CHECK(std::isnan(to_float(Store<Half>::from(std::nan("")))));
}

void half_precision() {
  rounding_is_to_nearest_even<bfloat16>(0x7F80, [](float x) { return to_bfloat16(x); });
  rounding_is_to_nearest_even<float16>(0x7C00, [](float x) { return to_float16(x); });
  a_double_is_rounded_once<bfloat16>(0x7F80);
  a_double_is_rounded_once<float16>(0x7C00);
  CHECK(to_float(float16{0x0001}) == 0x1p-24f && to_float(float16{0x8001}) == -0x1p-24f);
  CHECK(to_float(float16{0x7BFF}) == 65504.0f && to_float(float16{0x3C00}) == 1.0f);
  CHECK(std::isinf(to_float(float16{0x7C00})) && std::isnan(to_float(float16{0x7C01})));
  CHECK(to_float(bfloat16{0x3F80}) == 1.0f && to_float(bfloat16{0x0001}) == 0x1p-133f);
}

}  // namespace
}  // namespace lowrank

int main() {
  lowrank::half_precision();
  return lowrank::testing::finish();
}
