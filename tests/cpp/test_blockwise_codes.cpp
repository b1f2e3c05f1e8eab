// Codes, which are computed as floats, against their law in integers, over a dense grid of places.
#include <cmath>

#include "check.h"
#include "lowrank_core/blockwise.h"

namespace lowrank::blockwise {
namespace {

// The law of RootMap with whole numbers for codes, as it is read.
int32_t root_code(float t, float uniform) {
  const float k = std::floor(t);
  const int32_t code = int32_t(k) + int32_t(uniform * (2.0f * k + 1.0f) < (t - k) * (t + k));
  return code == 0 && t > 0.0f ? 1 : code;
}

void codes_as_floats_are_those_of_integers() {
  const float uniforms[] = {0.0f, 0x1p-24f, 0.1f, 0.25f, 1.0f / 3.0f, 0.5f, 0.75f, 0.9f, 1.0f - 0x1p-24f};
  int64_t wrong = 0;
  const auto compare = [&](float t) {
    for (const float uniform : uniforms) {
      wrong += RootMap::stochastic(t, uniform) != float(root_code(t, uniform));
      const float below = std::floor(t - 128.0f);
      wrong +=
          SignedMap::stochastic(t - 128.0f, uniform) != float(int32_t(below) + int32_t(uniform < t - 128.0f - below));
    }
    wrong += RootMap::nearest(t) != float(t > 0.0f && rounding::nearest(t) == 0 ? 1 : rounding::nearest(t));
  };
  for (int32_t i = 0; i <= 255 * 2048; ++i) compare(float(i) / 2048.0f);
  for (int k = 0; k <= 255; ++k) {  // beside every code
    if (k < 255) compare(std::nextafter(float(k), 256.0f));
    if (k > 0) compare(std::nextafter(float(k), 0.0f));
  }
  for (int exponent = -149; exponent < 0; ++exponent) compare(std::ldexp(1.0f, exponent));
  CHECK(wrong == 0);
}

}  // namespace
}  // namespace lowrank::blockwise

int main() {
  lowrank::blockwise::codes_as_floats_are_those_of_integers();
  return lowrank::testing::finish();
}
