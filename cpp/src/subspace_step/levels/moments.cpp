// The elementwise part of a step: moments, their storage and the direction.
#include "subspace_step/level.h"

#include "lowrank_core/blocks.h"
#include "lowrank_core/simd/philox.h"

namespace lowrank::LRC_LEVEL {
namespace {

using subspace_step::Advance;
using subspace_step::Factors;
using subspace_step::has_second;
using subspace_step::Moment;
using subspace_step::moment_draw;
using subspace_step::Rule;
using subspace_step::Storage;
using namespace blockwise;

// ---- moments -----------------------------------------------------------------------------------------------------

// What is stored of elements [begin, begin + count), count <= kBlock, of a moment.
template <class Map>
void decode(float* values, const Moment& from, int64_t begin, int64_t count) {
  if (from.storage == Storage::kBlocks) {
    const auto* codes = static_cast<const typename Map::Code*>(from.values) + begin;
    return decode_block<Map>(values, codes, from.scales[begin / kBlock], count);
  }
  const auto* halves = static_cast<const bfloat16*>(from.values) + begin;
  for (int64_t i = 0; i < count; ++i) values[i] = to_float(halves[i]);
}

void encode_halves(const Moment& to, const float* values, int64_t begin, int64_t count, const uint32_t* words) {
  auto* halves = static_cast<bfloat16*>(to.values) + begin;
  constexpr int lanes = kLanes<float>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto words_at = load_bits<Vec<uint32_t>>(words + i);
    store_bits(halves + i, upper_halves(round_to_bfloat16(load_bits<Vec<float>>(values + i), words_at)));
  }
  for (; i < count; ++i) halves[i] = to_bfloat16(values[i], words[i]);
}

// `spreads`: what Map::spread() makes of the values, for blocks.
template <class Map>
void encode(const Moment& to, const float* values, const float* spreads, int64_t begin, int64_t count, uint64_t seed,
            const philox::Position& at) {
  uint32_t words[kBlock];
  draw_words(words, count, seed, at);
  if (to.storage == Storage::kBFloat16) return encode_halves(to, values, begin, count, words);
  auto* codes = static_cast<typename Map::Code*>(to.values) + begin;
  to.scales[begin / kBlock] = encode_spreads<Map>(codes, spreads, count, Drawn{words});
}

template <class T>
void advance(Rule rule, const Factors<T>& f, T* low, T* first, T* second, int64_t count) {
  switch (rule) {
    case Rule::kAdam:
      for (int64_t i = 0; i < count; ++i) low[i] = subspace_step::adam(f, low[i], first[i], second[i]);
      return;
    case Rule::kAdaBelief:
      for (int64_t i = 0; i < count; ++i) {
        T root_v;
        low[i] = subspace_step::adabelief(f, low[i], first[i], second[i], root_v);
      }
      return;
    case Rule::kLion:
      for (int64_t i = 0; i < count; ++i) low[i] = subspace_step::lion(f, low[i], first[i]);
      return;
    case Rule::kMomentum:
      for (int64_t i = 0; i < count; ++i) low[i] = subspace_step::momentum(f, low[i], first[i]);
      return;
    case Rule::kAverage:
      for (int64_t i = 0; i < count; ++i) low[i] = subspace_step::average(f, low[i], first[i]);
      return;
    case Rule::kGiven:
      return;
  }
}

// The same of rules with a second moment, whose roots it tells.
void advance_rooted(Rule rule, const Factors<float>& f, float* low, float* first, float* second, float* roots,
                    int64_t count) {
  if (rule == Rule::kAdam) {
    for (int64_t i = 0; i < count; ++i) low[i] = subspace_step::adam(f, low[i], first[i], second[i], roots[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) low[i] = subspace_step::adabelief(f, low[i], first[i], second[i], roots[i]);
  }
}

template <class T>
void advance_work(const Advance& a, int64_t begin, int64_t end) {
  const auto f = subspace_step::factors<T>(a.beta1, a.beta2, a.eps, a.step);
  auto* first = static_cast<T*>(a.first.values);
  auto* second = has_second(a.rule) ? static_cast<T*>(a.second.values) : first;
  advance(a.rule, f, static_cast<T*>(a.low) + begin, first + begin, second + begin, end - begin);
}

void advance_coded(const Advance& a, int64_t begin, int64_t end) {
  const auto f = subspace_step::factors<float>(a.beta1, a.beta2, a.eps, a.step);
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t count = smaller(kBlock, end - i);
    float first[kBlock], second[kBlock], roots[kBlock];
    float* const low = static_cast<float*>(a.low) + i;
    decode<SignedMap>(first, a.first, i, count);
    if (has_second(a.rule)) {
      decode<RootMap>(second, a.second, i, count);
      advance_rooted(a.rule, f, low, first, second, roots, count);
    } else {
      advance(a.rule, f, low, first, second, count);
    }
    encode<SignedMap>(a.first, first, first, i, count, a.seed, moment_draw(i, a.size, false, a.step));
    if (!has_second(a.rule)) continue;
    encode<RootMap>(a.second, second, roots, i, count, a.seed, moment_draw(i, a.size, true, a.step));
  }
}

// The largest of the magnitudes' bits: all ones in the exponent for NaN and infinity.
template <class Bits>
LRC_INLINE bool all_below(const void* x, int64_t n, Bits infinity) {
  Bits largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    Bits bits;
    memcpy(&bits, static_cast<const Bits*>(x) + i, sizeof bits);
    bits &= Bits(~Bits(0)) >> 1;
    largest = bits > largest ? bits : largest;
  }
  return largest < infinity;
}

bool finite(const void* x, DType dtype, int64_t n) {
  switch (dtype) {
    case DType::kFloat64:
      return all_below<uint64_t>(x, n, 0x7FF0000000000000u);
    case DType::kBFloat16:
      return all_below<uint16_t>(x, n, 0x7F80u);
    case DType::kFloat16:
      return all_below<uint16_t>(x, n, 0x7C00u);
    default:
      return all_below<uint32_t>(x, n, 0x7F800000u);
  }
}

void advance_run(const Advance& a, int64_t begin, int64_t end) {
  if (a.dtype == DType::kFloat64) return advance_work<double>(a, begin, end);
  if (a.first.storage == Storage::kWork) return advance_work<float>(a, begin, end);
  advance_coded(a, begin, end);
}

template <class Map>
void encode_moment(const Moment& to, const float* values, int64_t begin, int64_t end, uint64_t seed,
                   const philox::Position& first) {
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t count = smaller(kBlock, end - i);
    const float* from = values + (i - begin);
    float spreads[kBlock];
    for (int64_t j = 0; j < count; ++j) spreads[j] = Map::spread(from[j]);
    const philox::Position at{first.element + uint64_t(i - begin), first.stream, first.step};
    encode<Map>(to, from, spreads, i, count, seed, at);
  }
}

void encode_run(const Moment& to, const float* values, int64_t begin, int64_t end, int64_t size, bool second,
                uint64_t seed, int64_t step) {
  const philox::Position first = moment_draw(begin, size, second, step);
  second ? encode_moment<RootMap>(to, values, begin, end, seed, first)
         : encode_moment<SignedMap>(to, values, begin, end, seed, first);
}

void decode_run(float* values, const Moment& from, int64_t begin, int64_t end, bool second) {
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t count = smaller(kBlock, end - i);
    float* to = values + (i - begin);
    second ? decode<RootMap>(to, from, i, count) : decode<SignedMap>(to, from, i, count);
  }
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const subspace_step::MomentLevel subspace_step::MomentLevel::LRC_LEVEL = {
    .advance = LRC_LEVEL::advance_run,
    .encode = LRC_LEVEL::encode_run,
    .decode = LRC_LEVEL::decode_run,
    .finite = LRC_LEVEL::finite,
};

}  // namespace lowrank
