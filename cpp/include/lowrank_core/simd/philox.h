// philox: many blocks of random words at a time. The statement is philox.h's rounds10; this is the same, side by side.
#pragma once

#include "lowrank_core/philox.h"
#include "lowrank_core/simd/vec.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace lowrank::LRC_LEVEL {
namespace {

using Halves = Vec<uint64_t>;  // a word in the lower half of each lane; what is in the upper half does not matter

LRC_INLINE Halves multiply_halves(const Halves& a, const Halves& b) {
#if defined(__AVX512F__)
  // The masked form, because GCC 12 warns of an uninitialised value inside the plain one.
  return bits_as<Halves>(_mm512_maskz_mul_epu32(0xFF, bits_as<__m512i>(a), bits_as<__m512i>(b)));
#elif defined(__AVX2__)
  return bits_as<Halves>(_mm256_mul_epu32(bits_as<__m256i>(a), bits_as<__m256i>(b)));
#elif defined(__SSE2__)
  return bits_as<Halves>(_mm_mul_epu32(bits_as<__m128i>(a), bits_as<__m128i>(b)));
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// N lanes of x and y, alternating.
template <size_t... L>
LRC_INLINE void interleave(uint32_t* to, const Halves& x, const Halves& y, std::index_sequence<L...>) {
  constexpr int n = sizeof...(L);
  store_bits(to, __builtin_shufflevector(x, y, (int(L) / 2 + (int(L) % 2 ? n : 0))...));
  store_bits(to + 2 * n, __builtin_shufflevector(x, y, (n / 2 + int(L) / 2 + (int(L) % 2 ? n : 0))...));
}

// The words of kSets sets of kLanes<uint64_t> blocks, the first one from `index` on and each `next` behind the one
// before. A set alone waits for its own products most of the time.
template <int kSets>
LRC_INLINE void philox_blocks(uint32_t* words, uint64_t seed, uint64_t index, uint64_t next, uint32_t stream,
                              uint32_t step) {
  constexpr int lanes = kLanes<uint64_t>;
  Halves c0[kSets], c1[kSets], c2[kSets], c3[kSets];
  uint64_t counters[lanes];
  for (int i = 0; i < lanes; ++i) counters[i] = index + uint64_t(i);
  for (int s = 0; s < kSets; ++s) {
    c0[s] = load_bits<Halves>(counters) + uint64_t(s) * next;
    c1[s] = c0[s] >> 32;
    c2[s] = Halves{} + stream;
    c3[s] = Halves{} + step;
  }
  const Halves m0 = Halves{} + philox::kMultiplier0, m1 = Halves{} + philox::kMultiplier1;
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Halves k0 = Halves{} + key0, k1 = Halves{} + key1;
    for (int s = 0; s < kSets; ++s) {
      const Halves p0 = multiply_halves(m0, c0[s]), p1 = multiply_halves(m1, c2[s]);
      c0[s] = (p1 >> 32) ^ c1[s] ^ k0;
      c2[s] = (p0 >> 32) ^ c3[s] ^ k1;
      c1[s] = p1;
      c3[s] = p0;
    }
    key0 += philox::kWeyl0;
    key1 += philox::kWeyl1;
  }
  for (int s = 0; s < kSets; ++s) {
    const Halves first = (c0[s] & 0xFFFFFFFFu) | (c1[s] << 32), second = (c2[s] & 0xFFFFFFFFu) | (c3[s] << 32);
    interleave(words + s * 4 * lanes, first, second, std::make_index_sequence<lanes>());
  }
}

constexpr int kWordsAtOnce = 16 * kLanes<uint64_t>;

// The random words of `count` consecutive elements, the first of them at `at`: philox::bits of each.
LRC_INLINE void draw_words(uint32_t* words, int64_t count, uint64_t seed, const philox::Position& at) {
  constexpr int64_t few = kWordsAtOnce / 4, many = kWordsAtOnce;
  int64_t i = 0;
  for (; i < count && (at.element + uint64_t(i)) % 4 != 0; ++i) {
    words[i] = philox::bits(seed, {at.element + uint64_t(i), at.stream, at.step});
  }
  for (; i + many <= count; i += many) {
    philox_blocks<4>(words + i, seed, (at.element + uint64_t(i)) / 4, kLanes<uint64_t>, at.stream, at.step);
  }
  for (; i + few <= count; i += few) {
    philox_blocks<1>(words + i, seed, (at.element + uint64_t(i)) / 4, 0, at.stream, at.step);
  }
  for (; i < count; ++i) words[i] = philox::bits(seed, {at.element + uint64_t(i), at.stream, at.step});
}

// The words of `lines` lines of kWordsAtOnce / 4 elements, the first of them at `at` and each line `step` elements
// behind the one before; both are multiples of 4.
LRC_INLINE void draw_lines(uint32_t* words, int lines, int64_t step, uint64_t seed, const philox::Position& at) {
  constexpr int line = kWordsAtOnce / 4;
  const uint64_t index = at.element / 4, next = uint64_t(step) / 4;
  int i = 0;
  for (; i + 4 <= lines; i += 4) {
    philox_blocks<4>(words + i * line, seed, index + uint64_t(i) * next, next, at.stream, at.step);
  }
  for (; i + 2 <= lines; i += 2) {
    philox_blocks<2>(words + i * line, seed, index + uint64_t(i) * next, next, at.stream, at.step);
  }
  if (i < lines) philox_blocks<1>(words + i * line, seed, index + uint64_t(i) * next, 0, at.stream, at.step);
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
