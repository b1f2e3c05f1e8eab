// philox: random bits as a pure function of (seed, stream, step, element). Nothing is drawn in order, so any
// partition over threads, grids or devices gives the same bits. Philox4x32-10, Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
#pragma once

#include <cstdint>

#include "lowrank_core/checks.h"

namespace lowrank::philox {

struct Block {
  uint32_t v[4];
};

// Where a number stands. `element` is the row-major linear index before any tiling; the streams are listed in
// docs/numerics.md; `step` counts optimizer steps or refreshes, 0 where there is none.
struct Position {
  uint64_t element;
  uint32_t stream;
  uint32_t step;
};

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;  // the golden ratio and sqrt(3) - 1

LRC_HD Block rounds10(Block counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(kMultiplier0) * counter.v[0];
    const uint64_t p1 = uint64_t(kMultiplier1) * counter.v[2];
    counter = {{uint32_t(p1 >> 32) ^ counter.v[1] ^ key0, uint32_t(p1), uint32_t(p0 >> 32) ^ counter.v[3] ^ key1,
                uint32_t(p0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// Block number `index` of a stream: 128 bits.
LRC_HD Block block(uint64_t seed, uint64_t index, uint32_t stream, uint32_t step) {
  return rounds10({{uint32_t(index), uint32_t(index >> 32), stream, step}}, uint32_t(seed), uint32_t(seed >> 32));
}

// 32 bits for one element; elements 4b .. 4b+3 share block b. Chosen, not indexed: a GPU keeps in registers what is
// not.
LRC_HD uint32_t bits(uint64_t seed, Position at) {
  const Block words = block(seed, at.element >> 2, at.stream, at.step);
  const bool odd = (at.element & 1) != 0;
  return (at.element & 2) != 0 ? (odd ? words.v[3] : words.v[2]) : (odd ? words.v[1] : words.v[0]);
}

// [0, 1) on a grid of 2^-24: exact in float on every device.
LRC_HD float uniform(uint32_t bits) { return float(int32_t(bits >> 8)) * 0x1p-24f; }  // AVX2 converts int32 alone

}  // namespace lowrank::philox
