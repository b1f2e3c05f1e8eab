// int4_project: 4-bit codes, two a byte, with a bfloat16 scale (and offset) for every group of consecutive elements,
// and products with a matrix that exists as codes only.
//
//   scheme      x ~                      codes                     scale                      offset
//   affine      scale c + offset         0 .. 15                   (high - offset) / 15       low
//   affine_zp   scale (c - offset)       0 .. 15                   (high - low) / 15          an integer, 0 .. 15
//   symmetric   scale (c - 8)            1 .. 15                   largest / 7                none
//   nf4         scale level[c]           0 .. 15, 16 levels        largest                    none
//
// low, high and largest (magnitude) are those of the group; affine_zp extends them to zero first. Scales are rounded up
// and affine offsets down to bfloat16, so that every element lies between two codes, and codes are chosen against
// what is stored: the error of an element is at most half its step of the STORED scale. A group without range has scale
// 0 and, for affine, the rounded constant as offset. Stochastic rounding is exact in the mean; for affine_zp it takes
// the smallest scale at which both ends are codes for some zero point, since clipping an end would bias it.
// Sources: Q-GaLore (arXiv 2407.08296) for affine_zp, repaired: the published one clamps the zero point and destroys
// groups of one sign; Dettmers et al. 2023 (arXiv 2305.14314), appendix E, for the levels of nf4.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "lowrank_core/integers.h"
#include "lowrank_core/philox.h"
#include "lowrank_core/rounding.h"
#include "lowrank_core/view.h"

namespace lowrank::int4_project {

constexpr uint32_t kStream = 4;  // docs/numerics.md
constexpr int64_t kLargestGroup = 256, kGroupMultiple = 32;
constexpr float kLargestValue = 0x1p127f;  // of a magnitude and of a group's range: everything decoded stays finite

enum class Scheme : uint8_t { kAffine, kAffineZp, kSymmetric, kNf4 };

// The levels of nf4. A function, because device code cannot index a constant of the host.
LRC_HD constexpr float nf4_level(int code) {
  constexpr float levels[16] = {-1.0f,
                                -0.6961928009986877f,
                                -0.5250730514526367f,
                                -0.39491748809814453f,
                                -0.28444138169288635f,
                                -0.18477343022823334f,
                                -0.09105003625154495f,
                                0.0f,
                                0.07958029955625534f,
                                0.16093020141124725f,
                                0.24611230194568634f,
                                0.33791524171829224f,
                                0.44070982933044434f,
                                0.5626170039176941f,
                                0.7229568362236023f,
                                1.0f};
  return levels[code];
}

// ---- what is stored of a group -----------------------------------------------------------------------------------

struct Stored {
  bfloat16 scale, offset;
};

struct Extremes {
  float low, high;

  LRC_HD float largest() const { return high > -low ? high : -low; }
  LRC_HD Extremes with_zero() const { return {low < 0.0f ? low : 0.0f, high > 0.0f ? high : 0.0f}; }
  // False for NaN and infinity, too.
  LRC_HD bool representable() const { return largest() <= kLargestValue && high - low <= kLargestValue; }
};

LRC_HD Stored fit_affine(Extremes x) {
  if (x.low == x.high) return {{0}, to_bfloat16(x.low)};
  const bfloat16 offset = rounding::bfloat16_below(x.low);
  return {rounding::bfloat16_above((x.high - to_float(offset)) / 15.0f), offset};
}

// x includes zero.
LRC_HD Stored fit_zero_point(Extremes x) {
  const bfloat16 scale = rounding::bfloat16_above((x.high - x.low) / 15.0f);
  const float zero = float(rounding::nearest(rounding::divider(to_float(scale))(-x.low)));
  return {scale, to_bfloat16(rounding::clamp(zero, 0.0f, 15.0f))};
}

// The scale at which both ends are within the codes for this zero point.
LRC_HD float covering_scale(Extremes x, float zero) {
  const float below = x.low < 0.0f ? -x.low / zero : 0.0f, above = x.high > 0.0f ? x.high / (15.0f - zero) : 0.0f;
  return below > above ? below : above;
}

LRC_HD Stored fit_covering_zero_point(Extremes x) {
  if (x.low == x.high) return {{0}, {0}};
  const float floor = floorf(-x.low / ((x.high - x.low) / 15.0f)), zero = rounding::clamp(floor, 0.0f, 14.0f);
  const float first = covering_scale(x, zero), second = covering_scale(x, zero + 1.0f);
  return {rounding::bfloat16_above(second < first ? second : first), to_bfloat16(second < first ? zero + 1.0f : zero)};
}

LRC_HD Stored fit(Scheme scheme, Extremes x, bool stochastic) {
  switch (scheme) {
    case Scheme::kAffine:
      return fit_affine(x);
    case Scheme::kAffineZp:
      return stochastic ? fit_covering_zero_point(x.with_zero()) : fit_zero_point(x.with_zero());
    case Scheme::kSymmetric:
      return {rounding::bfloat16_above(x.largest() / 7.0f), {0}};
    default:
      return {rounding::bfloat16_above(x.largest()), {0}};
  }
}

// ---- decoding ----------------------------------------------------------------------------------------------------

// How a group is read: scale * number + base, where number is the code or, for nf4, its level. A code has 4 bits and a
// scale 8, so scale * code and base are exact and a fused multiply-add changes nothing.
struct Grid {
  float scale, base;
};

LRC_HD Grid grid(Scheme scheme, float scale, float offset) {
  switch (scheme) {
    case Scheme::kAffine:
      return {scale, offset};
    case Scheme::kAffineZp:
      return {scale, -(scale * offset)};
    case Scheme::kSymmetric:
      return {scale, -(scale * 8.0f)};
    default:
      return {scale, 0.0f};
  }
}

LRC_HD float decode(Grid grid, float number) { return grid.scale * number + grid.base; }

// What `decode` takes for a code.
LRC_HD float number_of(int code, bool nf4) { return nf4 ? nf4_level(code) : float(code); }

// ---- encoding ----------------------------------------------------------------------------------------------------

// Where an element lies among the codes of its group: low <= place <= high, in steps from the code `shift`, for nf4 on
// the scale of its levels. `power` and `inverse` divide by the scale; `origin` is the offset, already times power.
struct Placement {
  float power, inverse, origin, low, high;
  int shift;

  LRC_HD float operator()(float x) const { return rounding::clamp((x * power - origin) * inverse, low, high); }
};

LRC_HD Placement placement(Scheme scheme, float scale, float offset) {
  const rounding::Divider divide = rounding::divider(scale);
  switch (scheme) {
    case Scheme::kAffine:
      return {divide.power, divide.inverse, offset * divide.power, 0.0f, 15.0f, 0};
    case Scheme::kAffineZp:
      return {divide.power, divide.inverse, 0.0f, -offset, 15.0f - offset, int(offset)};
    case Scheme::kSymmetric:
      return {divide.power, divide.inverse, 0.0f, -7.0f, 7.0f, 8};
    default:
      return {divide.power, divide.inverse, 0.0f, -1.0f, 1.0f, 0};
  }
}

LRC_HD int nearest_even_code(float place, int shift) { return rounding::nearest(place) + shift; }
LRC_HD int stochastic_even_code(float place, int shift, float uniform) {
  return int(rounding::stochastic(place, uniform)) + shift;
}

// Whether the place is past the midpoint between levels k and k + 1; past level k, or on the way to the next one with
// the probability that makes the place the mean.
template <int k>
LRC_HD bool is_past_midpoint(float place) {
  constexpr float middle = 0.5f * nf4_level(k) + 0.5f * nf4_level(k + 1);
  return place >= middle;
}
template <int k>
LRC_HD bool is_past_level(float place, float uniform) {
  constexpr float level = nf4_level(k), gap = nf4_level(k + 1) - nf4_level(k);
  return uniform * gap < place - level;
}

// The number of midpoints between neighbouring levels that are not above. Sums over all K are written as folds:
// compilers then turn a loop over places into vector instructions.
template <size_t... K>
LRC_HD int midpoints_below(float place, std::index_sequence<K...>) {
  return (0 + ... + int(is_past_midpoint<int(K)>(place)));
}
LRC_HD int nearest_nf4_code(float place) { return midpoints_below(place, std::make_index_sequence<15>()); }

// The lower of the two levels around, or the upper one with the probability that makes the place the mean.
template <size_t... K>
LRC_HD int levels_passed(float place, float uniform, std::index_sequence<K...>) {
  return (0 + ... + int(is_past_level<int(K)>(place, uniform)));
}
LRC_HD int stochastic_nf4_code(float place, float uniform) {
  return levels_passed(place, uniform, std::make_index_sequence<15>());
}

// ---- addressing --------------------------------------------------------------------------------------------------

struct Format {
  int dim;
  int64_t group;  // a multiple of kGroupMultiple, at most kLargestGroup
  Scheme scheme;

  // Of a line of so many elements.
  LRC_HD int64_t groups(int64_t length) const { return ceil_div(length, group); }
  LRC_HD int64_t bytes(int64_t length) const { return groups(length) * (group / 2); }
};

// Two neighbours along `dim` share a byte, the one of even index in its lower half.
LRC_HD uint8_t byte_of(int even, int odd) { return uint8_t(even | odd << 4); }
LRC_HD int code_of(uint8_t byte, int64_t index) { return index % 2 == 0 ? byte & 15 : byte >> 4; }

// Where the draw for an element stands, by its row-major number in the array.
LRC_HD philox::Position draw_position(uint64_t element) { return {element, kStream, 0}; }

// ---- entry points ------------------------------------------------------------------------------------------------

// Codes of an array and what belongs to them: like the array, but along `dim` packed has group / 2 bytes and scales and
// offsets have one entry for each group. All contiguous; scales and offsets bfloat16, or float32 with such values.
struct Codes {
  View packed, scales;
  std::optional<View> offsets;  // affine and affine_zp only
};

// x, any floating type and strides, to codes; a last group that is not full is padded with codes 0. `seed`: round
// stochastically, with the words of stream 4 at each element's row-major index. Tier D0.
// Throws NotFinite, and Error for a magnitude or a group's range above kLargestValue.
void quantize_cpu(const Codes& codes, const View& x, const Format& format, std::optional<uint64_t> seed);

// Into `out`, contiguous, any floating type: decoded in float32 and rounded once. Tier D0.
void dequantize_cpu(const View& out, const Codes& codes, const Format& format);
// The same for each of many arrays, which are decoded side by side. Tier D0.
struct Decoding {
  View out;
  Codes codes;
  Format format;
};
void dequantize_list_cpu(const std::vector<Decoding>& list);

// out <- Pᵀ x, with `back` P x, for every matrix of the batch x: P [rows, cols] from its codes, read as float32, summed
// in float32, in float64 where out is float64. Nothing of P's size is decoded. Tier D1.
// Error: that of gemm.h for the decoded P.
struct Basis {
  Codes codes;
  int64_t rows, cols;
};
void project_cpu(const View& out, const Basis& basis, const View& x, const Format& format, bool back);

}  // namespace lowrank::int4_project
