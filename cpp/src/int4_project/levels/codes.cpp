// The scalar statements of int4_project.h over a group of consecutive elements, as loops that compilers turn into
// vector instructions. No sum is reordered, so every level gives the same bits.
#include "int4_project/level.h"

#include "lowrank_core/simd/philox.h"

namespace lowrank::LRC_LEVEL {
namespace {

using namespace int4_project;

LRC_INLINE Extremes extremes(const float* x, int64_t n) {
  int32_t low = INT32_MAX, high = INT32_MIN;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = rounding::ordered(x[i]);
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  return {rounding::from_ordered(low), rounding::from_ordered(high)};
}

// What will be read a few groups later: the processor's own prefetching starts anew with every page.
LRC_INLINE void prefetch(const float* x, int64_t n) {
  constexpr int64_t ahead = 1024, line = 16;
  for (int64_t i = 0; i < n; i += line) __builtin_prefetch(x + ahead + i);
}

template <class Code>
LRC_INLINE void pack(uint8_t* bytes, int64_t n, const Code& code) {
  // One code a byte, then two: both passes stay in L1.
  uint8_t codes[kLargestGroup + 1];
  for (int64_t i = 0; i < n; ++i) codes[i] = uint8_t(code(i));
  codes[n] = 0;
  for (int64_t i = 0; i < (n + 1) / 2; ++i) bytes[i] = byte_of(codes[2 * i], codes[2 * i + 1]);
}

LRC_INLINE void draw(uint32_t* words, const CodeRun& run, int64_t begin, int64_t n) {
  const uint64_t first = run.element + uint64_t(begin * run.element_step);
  if (run.element_step == 1) return draw_words(words, n, run.seed, draw_position(first));
  for (int64_t i = 0; i < n; ++i) {
    words[i] = philox::bits(run.seed, draw_position(first + uint64_t(i * run.element_step)));
  }
}

template <bool kNf4, bool kStochastic>
LRC_INLINE void encode_group(uint8_t* bytes, const CodeRun& run, int64_t begin, int64_t n, const Placement& at) {
  const float* const x = run.x + begin;
  if constexpr (kStochastic) {
    uint32_t words[kLargestGroup];
    draw(words, run, begin, n);
    pack(bytes, n, [&](int64_t i) {
      const float place = at(x[i]), uniform = philox::uniform(words[i]);
      return kNf4 ? stochastic_nf4_code(place, uniform) : stochastic_even_code(place, at.shift, uniform);
    });
  } else {
    pack(bytes, n,
         [&](int64_t i) { return kNf4 ? nearest_nf4_code(at(x[i])) : nearest_even_code(at(x[i]), at.shift); });
  }
}

template <Scheme kScheme, bool kStochastic>
bool encode(uint8_t* bytes, Stored* stored, const CodeRun& run) {
  const int64_t half = run.group / 2;
  for (int64_t begin = 0; begin < run.length; begin += run.group, bytes += half, ++stored) {
    const int64_t left = run.length - begin, n = left < run.group ? left : run.group;
    prefetch(run.x + begin, n);
    const Extremes range = extremes(run.x + begin, n);
    if (!range.representable()) return false;
    *stored = fit(kScheme, range, kStochastic);
    const Placement at = placement(kScheme, to_float(stored->scale), to_float(stored->offset));
    encode_group<kScheme == Scheme::kNf4, kStochastic>(bytes, run, begin, n, at);
    for (int64_t i = (n + 1) / 2; i < half; ++i) bytes[i] = 0;
  }
  return true;
}

template <Scheme kScheme>
bool encode(uint8_t* bytes, Stored* stored, const CodeRun& run) {
  return (run.stochastic ? encode<kScheme, true> : encode<kScheme, false>)(bytes, stored, run);
}

bool encode_run(uint8_t* bytes, Stored* stored, const CodeRun& run) {
  switch (run.scheme) {
    case Scheme::kAffine:
      return encode<Scheme::kAffine>(bytes, stored, run);
    case Scheme::kAffineZp:
      return encode<Scheme::kAffineZp>(bytes, stored, run);
    case Scheme::kSymmetric:
      return encode<Scheme::kSymmetric>(bytes, stored, run);
    default:
      return encode<Scheme::kNf4>(bytes, stored, run);
  }
}

void decode_group(float* x, const uint8_t* bytes, int64_t n, Grid grid, bool nf4) {
  uint8_t codes[kLargestGroup + 1];
  for (int64_t i = 0; i < (n + 1) / 2; ++i) {
    codes[2 * i] = uint8_t(code_of(bytes[i], 0));
    codes[2 * i + 1] = uint8_t(code_of(bytes[i], 1));
  }
  if (nf4) {
    for (int64_t i = 0; i < n; ++i) x[i] = decode(grid, number_of(codes[i], true));
  } else {
    for (int64_t i = 0; i < n; ++i) x[i] = decode(grid, number_of(codes[i], false));
  }
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const int4_project::CodeLevel int4_project::CodeLevel::LRC_LEVEL = {LRC_LEVEL::encode_run,
                                                                              LRC_LEVEL::decode_group};

}  // namespace lowrank
