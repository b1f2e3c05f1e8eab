// blocks: the codes of blockwise.h over the elements of a block, on the host. For moments and weights that are decoded,
// changed in float32 and encoded again inside one loop.
//
//   float values[kBlock];
//   decode_block<SignedMap>(values, codes, scale, count);        // count <= kBlock, less in the last block of an array
//   ...                                                          // float32
//   scale = encode_block<SignedMap>(codes, values, count, Stochastic{seed, {element, stream, step}});
#pragma once

#include "lowrank_core/blockwise.h"

namespace lowrank::blockwise {

// The random words of `count` consecutive elements, the first of them at `at`.
LRC_INLINE void draw(uint32_t* words, int64_t count, uint64_t seed, philox::Position at) {
  int64_t i = 0;
  for (; i < count && (at.element + uint64_t(i)) % 4 != 0; ++i) {
    words[i] = philox::bits(seed, {at.element + uint64_t(i), at.stream, at.step});
  }
  const uint64_t first = (at.element + uint64_t(i)) / 4;
  for (int64_t b = 0; i + 4 <= count; ++b, i += 4) {
    const philox::Block block = philox::block(seed, first + uint64_t(b), at.stream, at.step);
    for (int j = 0; j < 4; ++j) words[i + j] = block.v[j];
  }
  for (; i < count; ++i) words[i] = philox::bits(seed, {at.element + uint64_t(i), at.stream, at.step});
}

// codes[i] = code(i). By two loops: with the conversion to bytes in the first one, vectors take half as long again.
template <class Map, class Code>
LRC_INLINE void write_codes(typename Map::Code* codes, int64_t count, const Code& code) {
  float rounded[kBlock];
  for (int64_t i = 0; i < count; ++i) rounded[i] = code(i);
  for (int64_t i = 0; i < count; ++i) codes[i] = typename Map::Code(int32_t(rounded[i]));
}

// Each rounds what spread() makes of the elements, by their number within the block.
struct Nearest {
  template <class Map>
  LRC_INLINE void encode(typename Map::Code* codes, const float* spreads, int64_t count,
                         rounding::Divider divide) const {
    write_codes<Map>(codes, count, [=](int64_t i) { return code_of<Map>(spreads[i], divide); });
  }
};

struct Drawn {
  const uint32_t* words;  // of the block's elements

  template <class Map>
  LRC_INLINE void encode(typename Map::Code* codes, const float* spreads, int64_t count,
                         rounding::Divider divide) const {
    write_codes<Map>(codes, count, [=, *this](int64_t i) { return code_of<Map>(spreads[i], divide, words[i]); });
  }
};

struct Stochastic {
  uint64_t seed;
  philox::Position first;  // of the block's first element

  template <class Map>
  LRC_INLINE void encode(typename Map::Code* codes, const float* spreads, int64_t count,
                         rounding::Divider divide) const {
    uint32_t words[kBlock];
    draw(words, count, seed, first);
    Drawn{words}.template encode<Map>(codes, spreads, count, divide);
  }
};

// Encodes count <= kBlock values, given as spread() of each; returns the block's scale. `codes` may not overlap them.
template <class Map, class Rounding>
LRC_INLINE float encode_spreads(typename Map::Code* codes, const float* spreads, int64_t count,
                                const Rounding& rounding) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = magnitude_bits(spreads[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  const float scale = scale_of<Map>(bits_float(largest));
  rounding.template encode<Map>(codes, spreads, count, rounding::divider(scale));
  return scale;
}

// Encodes count <= kBlock values, those of a RootMap >= 0, likewise.
template <class Map, class Rounding>
LRC_INLINE float encode_block(typename Map::Code* codes, const float* values, int64_t count, const Rounding& rounding) {
  float spreads[kBlock];
  for (int64_t i = 0; i < count; ++i) spreads[i] = Map::spread(values[i]);
  return encode_spreads<Map>(codes, spreads, count, rounding);
}

template <class Map>
LRC_INLINE void decode_block(float* values, const typename Map::Code* codes, float scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = Map::value(codes[i], scale);
}

}  // namespace lowrank::blockwise
