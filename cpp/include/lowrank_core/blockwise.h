// blockwise: 8-bit codes with one float32 scale for every block of consecutive elements. For moments and weights that
// are decoded, changed in float32 and encoded again inside one kernel loop.
//
//   signed   x ~ scale c        c in [-127, 127], scale = largest |x| / 127    first moments, weights
//   root     v ~ (scale c)^2    c in [0, 255],    scale = largest sqrt(v) / 255    second moments, v >= 0
//
// This is what a code is; blocks.h goes over the elements of a block.
//
// A block of zeros has scale 0; decoding never divides. Second moments are judged by 1 / sqrt(v), so their codes are
// even in sqrt(v): the smallest non-zero one is (1/255)^2 of the largest, where codes even in v would leave nothing
// below 1/255. A positive v never becomes 0, which would blow up a step; the price is that values below scale^2 are
// raised to it. Error: half a step (signed), half a step of sqrt(v) (root). Ties go to the upper code. Rounding to
// nearest lets an average stand still that moves by less than half a step per update; stochastic rounding is exact in
// the mean, of v itself for root (values below scale^2 aside), because the largest value of a block is a code. What is
// not finite gives a scale that is not finite, so no finite value is decoded. Tier D0.
//
// INT8 weights (Q-GaLore, arXiv 2407.08296) are `signed` with Stochastic: decode, add the update, encode, all in
// float32. Deviation: symmetric where the paper has a zero point, whose rounding clips the extremes of a block and
// biases them. Sources: Dettmers et al. 2021 (arXiv 2110.02861) for blocks, with even instead of dynamic maps.
#pragma once

#include "lowrank_core/integers.h"
#include "lowrank_core/philox.h"
#include "lowrank_core/rounding.h"

namespace lowrank::blockwise {

constexpr int64_t kBlock = 256;
constexpr uint32_t kParameterStream = 2, kStateStream = 3;  // docs/numerics.md

LRC_HD constexpr int64_t blocks(int64_t size) { return ceil_div(size, kBlock); }

// A map says in which space its codes are even (`spread`), what a code stands for (`value`), and how a place `t`
// between codes is rounded. `t` is spread(x) / scale, kept within the codes by `place`. A code is a float until it is
// stored: integers among the conditions cost vectors twice the time.
struct SignedMap {
  using Code = int8_t;
  static constexpr float kLargest = 127.0f;

  static LRC_HD float spread(float x) { return x; }
  static LRC_HD float value(Code code, float scale) { return float(code) * scale; }
  static LRC_HD float place(float t) { return rounding::clamp(t, -kLargest, kLargest); }
  static LRC_HD float nearest(float t) { return float(rounding::nearest(t)); }
  static LRC_HD float stochastic(float t, float uniform) { return rounding::stochastic(t, uniform); }
};

struct RootMap {
  using Code = uint8_t;
  static constexpr float kLargest = 255.0f;

  static LRC_HD float spread(float v) { return sqrtf(v); }
  static LRC_HD float value(Code code, float scale) {
    const float root = float(code) * scale;
    return root * root;
  }
  static LRC_HD float place(float t) { return rounding::clamp(t, 0.0f, kLargest); }
  static LRC_HD float nearest(float t) { return not_zero(float(rounding::nearest(t)), t); }
  // Between k and k + 1 the upper code has probability (t^2 - k^2) / ((k + 1)^2 - k^2): the mean of c^2 is t^2.
  static LRC_HD float stochastic(float t, float uniform) {
    const float k = floorf(t);
    const float up = uniform * (2.0f * k + 1.0f) < (t - k) * (t + k) ? 1.0f : 0.0f;
    return not_zero(k + up, t);
  }

  // For what is positive.
  static LRC_HD float not_zero(float code, float t) {
    const float least = t > 0.0f ? 1.0f : 0.0f;
    return code > least ? code : least;
  }
};

// The scale of a block where the largest magnitude of spread(x) is `largest`.
template <class Map>
LRC_HD float scale_of(float largest) {
  return largest / Map::kLargest;
}

// The code of x, given spread(x), by the divider of its block's scale; with a random word rounded stochastically.
template <class Map>
LRC_HD float code_of(float spread, rounding::Divider divide) {
  return Map::nearest(Map::place(divide(spread)));
}
template <class Map>
LRC_HD float code_of(float spread, rounding::Divider divide, uint32_t word) {
  return Map::stochastic(Map::place(divide(spread)), philox::uniform(word));
}

}  // namespace lowrank::blockwise
