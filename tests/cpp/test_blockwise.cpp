// Rounding to codes, and the 8-bit blocks that moments and weights are stored in.
#include "lowrank_core/blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "check.h"

namespace lowrank::blockwise {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kMost = std::numeric_limits<float>::max();
constexpr double kUnit = 0x1p-24;
// In steps: a place is three roundings (spread, power, inverse) and the scale's own away from the exact one.
constexpr double kHalfStep = 0.5 + 255 * 4 * kUnit;

// ---- rounding ----------------------------------------------------------------------------------------------------

void nearest_takes_the_upper_of_equals() {
  for (int k = -300; k < 300; ++k) {
    const float middle = float(k) + 0.5f;
    CHECK(rounding::nearest(middle) == k + 1);
    CHECK(rounding::nearest(std::nextafter(middle, -1e3f)) == k);
    CHECK(rounding::nearest(std::nextafter(middle, 1e3f)) == k + 1);
    CHECK(rounding::nearest(float(k)) == k);
  }
  CHECK(rounding::nearest(0.49999997f) == 0);  // where floor(x + 0.5) says 1
}

void stochastic_moves_what_is_between() {
  CHECK(rounding::stochastic(2.25f, 0.2499f) == 3 && rounding::stochastic(2.25f, 0.25f) == 2);
  CHECK(rounding::stochastic(-2.25f, 0.7499f) == -2 && rounding::stochastic(-2.25f, 0.75f) == -3);
  for (int k = -128; k < 128; ++k) CHECK(rounding::stochastic(float(k), 0.0f) == k);
}

void division_survives_every_scale() {
  for (const float scale : {1.0f, 3.0f, 1e-38f, 1e-40f, 1.5e-45f, 1e38f, kMost}) {
    const rounding::Divider divide = rounding::divider(scale);
    for (const double place : {0.0, 0.3, -1.0, 2.5, -77.77, 254.9}) {
      const float x = float(place * double(scale));
      if (!std::isfinite(x)) continue;
      const double exact = double(x) / double(scale);
      CHECK(std::abs(double(divide(x)) - exact) <= 3 * kUnit * std::abs(exact));
    }
  }
  CHECK(rounding::divider(0.0f)(5.0f) == 0.0f);
}

void bfloat16_neighbours_enclose() {
  for (uint32_t bits = 1; bits < 0x7F7FFFFFu; bits += 0x30D41u) {
    for (const float x : {bits_float(bits), -bits_float(bits)}) {
      const float above = to_float(rounding::bfloat16_above(x)), below = to_float(rounding::bfloat16_below(x));
      const bool at_end = std::abs(x) > 0x1.FEp127f;
      CHECK((below <= x && x <= above) || at_end);
      CHECK(std::isfinite(above) && std::isfinite(below));
      if (to_float(to_bfloat16(x)) == x) CHECK(above == x && below == x);
      const float nearest = to_float(to_bfloat16(x));
      CHECK(nearest == above || nearest == below || at_end);
    }
  }
  CHECK(float_bits(to_float(rounding::bfloat16_below(0.0f))) == 0);
  CHECK(to_float(rounding::bfloat16_above(kMost)) == 0x1.FEp127f);
}

void integers_order_like_their_floats() {
  const float ascending[] = {-kInfinity, -kMost, -1.0f, -1e-45f, 0.0f, 1e-45f, 1e-38f, 2.0f, kMost, kInfinity};
  for (size_t i = 0; i + 1 < std::size(ascending); ++i) {
    CHECK(rounding::ordered(ascending[i]) < rounding::ordered(ascending[i + 1]));
    CHECK(rounding::from_ordered(rounding::ordered(ascending[i])) == ascending[i]);
  }
  CHECK(rounding::ordered(kNaN) > rounding::ordered(kInfinity));
  CHECK(rounding::ordered(-kNaN) < rounding::ordered(-kInfinity));
  CHECK(rounding::finite(kMost) && !rounding::finite(-kInfinity) && !rounding::finite(kNaN));
}

void drawn_words_are_those_of_their_places() {
  for (uint64_t first = 0; first < 9; ++first) {
    for (int64_t count = 0; count < 14; ++count) {
      std::vector<uint32_t> words(size_t(count) + 1, 7);
      draw(words.data(), count, 99, {first, 3, 5});
      for (int64_t i = 0; i < count; ++i) CHECK(words[size_t(i)] == philox::bits(99, {first + uint64_t(i), 3, 5}));
      CHECK(words[size_t(count)] == 7);
    }
  }
}

// ---- blocks ------------------------------------------------------------------------------------------------------

template <class Map>
struct Encoded {
  std::vector<typename Map::Code> codes;
  float scale;

  std::vector<float> decoded() const {
    std::vector<float> values(codes.size());
    decode_block<Map>(values.data(), codes.data(), scale, int64_t(codes.size()));
    return values;
  }
};

template <class Map, class Rounding = Nearest>
Encoded<Map> encode(const std::vector<float>& values, const Rounding& rounding = {}) {
  Encoded<Map> out{std::vector<typename Map::Code>(values.size()), kNaN};
  out.scale = encode_block<Map>(out.codes.data(), values.data(), int64_t(values.size()), rounding);
  return out;
}

template <class Map>
std::vector<float> sample(int64_t count, float size) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const float x = philox::uniform(philox::bits(1, {uint64_t(i), 0, 0})) * 2 - 1;
    values[size_t(i)] = size * (std::is_same_v<Map, SignedMap> ? x : x * x * x * x);
  }
  return values;
}

template <class Map>
void check_errors(const std::vector<float>& values) {
  const Encoded<Map> encoded = encode<Map>(values);
  const std::vector<float> decoded = encoded.decoded();
  float largest = 0;
  for (const float x : values) largest = std::max(largest, std::abs(x));
  const double rounding_of_scale = 0x1p-149;  // half of it, twice: a subnormal scale is rounded to a coarse grid
  for (size_t i = 0; i < values.size(); ++i) {
    const double was = double(Map::spread(values[i])),
                 is = std::copysign(double(Map::spread(std::abs(decoded[i]))), decoded[i]);
    const bool raised = !std::is_same_v<Map, SignedMap> && was < double(encoded.scale);
    const double step = raised ? 1.0 + 4 * kUnit : kHalfStep;
    CHECK(std::abs(is - was) <= step * double(encoded.scale) + double(Map::kLargest) * rounding_of_scale);
    if (std::is_same_v<Map, RootMap>) CHECK((values[i] > 0) == (encoded.codes[i] > 0));
  }
}

template <class Map>
void every_block_keeps_its_error() {
  for (const int64_t count : {1, 2, 15, 16, 17, 255, 256}) {
    for (const float size : {1.0f, 1e-38f, 1e-30f, 1e38f, kMost}) check_errors<Map>(sample<Map>(count, size));
  }
  std::vector<float> outlier = sample<Map>(kBlock, 1e-3f);
  outlier[77] = 1e3f;
  check_errors<Map>(outlier);
  check_errors<Map>(std::vector<float>(100, 0.3f));  // constant
  if (std::is_same_v<Map, SignedMap>) check_errors<Map>(std::vector<float>(100, -0.3f));
}

// The scale is found anew and may differ from the old one by a rounding, the codes not at all.
template <class Map>
void codes_come_back() {
  for (const float scale : {1.0f, 0.37f, 1e-18f, 1e15f}) {
    std::vector<typename Map::Code> codes;
    std::vector<float> values;
    for (int c = std::is_same_v<Map, SignedMap> ? -127 : 0; c <= int(Map::kLargest); ++c) {
      codes.push_back(typename Map::Code(c));
      values.push_back(Map::value(codes.back(), scale));
    }
    const Encoded<Map> once = encode<Map>(values);
    CHECK(once.codes == codes && encode<Map>(once.decoded()).codes == codes);
    // Exact places never move; others are a few roundings away from their integer, which is how likely they are to.
    for (uint32_t step = 0; step < 20 && scale == 1.0f; ++step) {
      CHECK(encode<Map>(values, Stochastic{5, {0, 3, step}}).codes == codes);
    }
  }
}

template <class Map>
void zeros_and_what_is_not_finite() {
  const Encoded<Map> zeros = encode<Map>(std::vector<float>(50, 0.0f));
  CHECK(zeros.scale == 0.0f);
  for (const float x : zeros.decoded()) CHECK(x == 0.0f);
  for (const float bad : {kInfinity, kNaN}) {
    std::vector<float> values = sample<Map>(50, 1.0f);
    values[20] = bad;
    const Encoded<Map> encoded = encode<Map>(values);
    CHECK(!std::isfinite(encoded.scale));
    for (const float x : encoded.decoded()) CHECK(!std::isfinite(x));
  }
}

template <class Map>
void powers_of_two_change_no_code() {
  const std::vector<float> values = sample<Map>(kBlock, 1.0f);
  const Encoded<Map> plain = encode<Map>(values);
  for (const int power : {-60, -2, 4, 80}) {
    std::vector<float> scaled(values);
    for (float& x : scaled) x = std::ldexp(x, power);
    CHECK(encode<Map>(scaled).codes == plain.codes);
  }
}

template <class Map>
void larger_values_have_no_smaller_codes() {
  std::vector<float> values = sample<Map>(kBlock, 3.0f);
  std::sort(values.begin(), values.end());
  const Encoded<Map> encoded = encode<Map>(values);
  CHECK(std::is_sorted(encoded.codes.begin(), encoded.codes.end()));
}

// ---- stochastic rounding -----------------------------------------------------------------------------------------

// Every value has the right mean: |z| below 5 has a chance of 6e-7 to fail, once for each of the values.
template <class Map>
void stochastic_is_right_in_the_mean() {
  constexpr int draws = 20000;
  const std::vector<float> values = sample<Map>(64, 1.0f);
  std::vector<double> sum(values.size());
  std::vector<int> least(values.size(), 1000), most(values.size(), -1000);
  float scale = 0;
  for (uint32_t step = 0; step < draws; ++step) {
    const Encoded<Map> encoded = encode<Map>(values, Stochastic{1234, {640, 3, step}});
    const std::vector<float> decoded = encoded.decoded();
    scale = encoded.scale;
    for (size_t i = 0; i < values.size(); ++i) {
      sum[i] += double(decoded[i]);
      least[i] = std::min(least[i], int(encoded.codes[i]));
      most[i] = std::max(most[i], int(encoded.codes[i]));
    }
  }
  for (size_t i = 0; i < values.size(); ++i) {
    CHECK(most[i] - least[i] <= 1);
    const double a = double(Map::value(typename Map::Code(least[i]), scale));
    const double b = double(Map::value(typename Map::Code(most[i]), scale)), x = double(values[i]);
    if (std::is_same_v<Map, RootMap> && least[i] == 1 && x < a) continue;  // raised to the smallest code, as documented
    const double rounding = 255 * 4 * kUnit * double(Map::value(1, scale)) * 255;
    CHECK(std::abs(sum[i] / draws - x) <= 5 * std::sqrt(std::max(0.0, (x - a) * (b - x)) / draws) + rounding);
  }
}

// Updates far below half a step are lost by rounding to nearest and add up under stochastic rounding.
void small_updates_of_weights_add_up() {
  constexpr int steps = 2000;
  const float update = 0.01f;  // steps of the code
  std::vector<float> start = sample<SignedMap>(kBlock, 100.0f);
  start[0] = 127.0f;  // the scale is 1 and stays so
  Encoded<SignedMap> drawn = encode<SignedMap>(start, Stochastic{7, {0, kParameterStream, 0}});
  Encoded<SignedMap> nearest = encode<SignedMap>(start);
  const std::vector<float> before = nearest.decoded();
  double began = 0, moved = 0;
  for (const float x : drawn.decoded()) began += double(x);
  for (uint32_t step = 1; step <= steps; ++step) {
    std::vector<float> values = drawn.decoded(), others = nearest.decoded();
    for (size_t i = 1; i < values.size(); ++i) values[i] += update, others[i] += update;
    drawn = encode<SignedMap>(values, Stochastic{7, {0, kParameterStream, step}});
    nearest = encode<SignedMap>(others);
  }
  for (const float x : drawn.decoded()) moved += double(x);
  const double ideal = steps * double(update) * (kBlock - 1);
  // A step's rounding has the variance p (1 - p) with p = 0.01 for each weight.
  const double deviation = std::sqrt(steps * 0.01 * 0.99 * (kBlock - 1));
  CHECK(std::abs(moved - began - ideal) <= 5 * deviation);
  CHECK(nearest.decoded() == before);
}

template <class Map>
void all() {
  every_block_keeps_its_error<Map>();
  codes_come_back<Map>();
  zeros_and_what_is_not_finite<Map>();
  powers_of_two_change_no_code<Map>();
  larger_values_have_no_smaller_codes<Map>();
  stochastic_is_right_in_the_mean<Map>();
}

}  // namespace
}  // namespace lowrank::blockwise

int main() {
  using namespace lowrank::blockwise;
  nearest_takes_the_upper_of_equals();
  stochastic_moves_what_is_between();
  division_survives_every_scale();
  bfloat16_neighbours_enclose();
  integers_order_like_their_floats();
  drawn_words_are_those_of_their_places();
  all<SignedMap>();
  all<RootMap>();
  small_updates_of_weights_add_up();
  return lowrank::testing::finish();
}
