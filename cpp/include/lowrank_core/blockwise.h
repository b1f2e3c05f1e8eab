// blockwise: 8-bit codes with one float32 scale for every block of consecutive elements. For moments and weights that
// are decoded, changed in float32 and encoded again inside one kernel loop.
//
//   signed   x ~ scale c        c in [-127, 127], scale = largest |x| / 127    first moments, weights
//   root     v ~ (scale c)^2    c in [0, 255],    scale = largest sqrt(v) / 255    second moments, v >= 0
//
//   float values[kBlock];
//   decode_block<SignedMap>(values, codes, scale, count);        // count <= kBlock, less in the last block of an array
//   ...                                                          // float32
//   scale = encode_block<SignedMap>(codes, values, count, Stochastic{seed, {element, stream, step}});
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

#include <optional>

#include "lowrank_core/rounding.h"
#include "lowrank_core/view.h"

namespace lowrank::blockwise {

constexpr int64_t kBlock = 256;
constexpr uint32_t kParameterStream = 2, kStateStream = 3;  // docs/numerics.md

constexpr int64_t blocks(int64_t size) { return (size + kBlock - 1) / kBlock; }

// A map says in which space its codes are even (`spread`), what a code stands for (`value`), and how a place `t`
// between codes is rounded. `t` is spread(x) / scale, kept within the codes by `place`.
struct SignedMap {
  using Code = int8_t;
  static constexpr float kLargest = 127.0f;

  static LRC_HD float spread(float x) { return x; }
  static LRC_HD float value(Code code, float scale) { return float(code) * scale; }
  static LRC_HD float place(float t) { return rounding::clamp(t, -kLargest, kLargest); }
  static LRC_HD Code nearest(float t) { return Code(rounding::nearest(t)); }
  static LRC_HD Code stochastic(float t, float uniform) { return Code(rounding::stochastic(t, uniform)); }
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
  static LRC_HD Code nearest(float t) { return not_zero(rounding::nearest(t), t); }
  // Between k and k + 1 the upper code has probability (t^2 - k^2) / ((k + 1)^2 - k^2): the mean of c^2 is t^2.
  static LRC_HD Code stochastic(float t, float uniform) {
    const float k = floorf(t);
    const bool up = uniform * (2.0f * k + 1.0f) < (t - k) * (t + k);
    return not_zero(int32_t(k) + int32_t(up), t);
  }

 private:
  static LRC_HD Code not_zero(int32_t code, float t) { return Code(code == 0 && t > 0.0f ? 1 : code); }
};

// Elements are rounded by their number within the block.
struct Nearest {
  template <class Map>
  LRC_HD void encode(typename Map::Code* codes, const float* values, int64_t count, rounding::Divider divide) const {
    for (int64_t i = 0; i < count; ++i) codes[i] = Map::nearest(Map::place(divide(Map::spread(values[i]))));
  }
};

struct Stochastic {
  uint64_t seed;
  philox::Position first;  // of the block's first element

  template <class Map>
  LRC_HD void encode(typename Map::Code* codes, const float* values, int64_t count, rounding::Divider divide) const {
    uint32_t words[kBlock];
    rounding::draw(words, count, seed, first);
    for (int64_t i = 0; i < count; ++i) {
      codes[i] = Map::stochastic(Map::place(divide(Map::spread(values[i]))), philox::uniform(words[i]));
    }
  }
};

// The scale of a block whose largest magnitude is `largest`.
template <class Map>
LRC_HD float scale_of(float largest) {
  return Map::spread(largest) / Map::kLargest;
}

// Encodes count <= kBlock values, those of a RootMap >= 0; returns the block's scale. `codes` may not overlap `values`.
template <class Map, class Rounding>
LRC_HD float encode_block(typename Map::Code* codes, const float* values, int64_t count, const Rounding& rounding) {
  uint32_t largest = 0;  // magnitudes order like their bits
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = float_bits(values[i]) & 0x7FFFFFFFu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float scale = scale_of<Map>(bits_float(largest));
  rounding.template encode<Map>(codes, values, count, rounding::divider(scale));
  return scale;
}

template <class Map>
LRC_HD void decode_block(float* values, const typename Map::Code* codes, float scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = Map::value(codes[i], scale);
}

// ---- whole arrays, on the CPU ------------------------------------------------------------------------------------

enum class MapKind : uint8_t { kSigned, kRoot };

// Where the random words of an array's elements stand; its first one is element 0.
struct Draws {
  uint64_t seed;
  uint32_t stream, step;
};

// values float32, codes int8 (signed) or uint8 (root), of one size; scales float32, one for each block. All contiguous;
// blocks follow the row-major order, the last may be short. Without `draws` to nearest.
void encode_cpu(const View& codes, const View& scales, const View& values, MapKind map, std::optional<Draws> draws);
void decode_cpu(const View& values, const View& codes, const View& scales, MapKind map);

}  // namespace lowrank::blockwise
