// The scalar statements of int4_project.h over a group of consecutive elements, as loops that compilers turn into
// vector instructions. No sum is reordered, so every level gives the same bits.
#include "lowrank_core/simd/int4_project.h"

namespace lowrank::LRC_LEVEL {
namespace {

using int4::kLargestGroup;

template <class Code>
LRC_HD void encode_group(uint8_t* bytes, int64_t n, const Code& code) {
  // One code a byte, then two: both passes stay in L1.
  uint8_t codes[kLargestGroup + 1];
  for (int64_t i = 0; i < n; ++i) codes[i] = uint8_t(code(i));
  codes[n] = 0;
  for (int64_t i = 0; i < (n + 1) / 2; ++i) {
    bytes[i] = uint8_t(codes[2 * i] | codes[2 * i + 1] << 4);
  }
}

}  // namespace

int4::Extremes int4_extremes(const float* x, int64_t n) {
  int32_t low = INT32_MAX, high = INT32_MIN;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = rounding::ordered(x[i]);
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  return {rounding::from_ordered(low), rounding::from_ordered(high)};
}

void int4_encode(uint8_t* bytes, const float* x, int64_t n, const int4::Placement& place, bool nf4,
                 const uint32_t* words) {
  const int4::Placement at = place;  // a copy, which the stores cannot alias
  if (nf4 && words) {
    encode_group(bytes, n, [&](int64_t i) { return int4::stochastic_nf4_code(at(x[i]), philox::uniform(words[i])); });
  } else if (nf4) {
    encode_group(bytes, n, [&](int64_t i) { return int4::nearest_nf4_code(at(x[i])); });
  } else if (words) {
    encode_group(bytes, n,
                 [&](int64_t i) { return int4::stochastic_even_code(at(x[i]), at.shift, philox::uniform(words[i])); });
  } else {
    encode_group(bytes, n, [&](int64_t i) { return int4::nearest_even_code(at(x[i]), at.shift); });
  }
}

void int4_decode(float* x, const uint8_t* bytes, int64_t n, int4::Grid grid, bool nf4) {
  uint8_t codes[kLargestGroup + 1];
  for (int64_t i = 0; i < (n + 1) / 2; ++i) {
    codes[2 * i] = bytes[i] & 15;
    codes[2 * i + 1] = bytes[i] >> 4;
  }
  if (nf4) {
    for (int64_t i = 0; i < n; ++i) x[i] = int4::decode(grid, int4::nf4_level(codes[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) x[i] = int4::decode(grid, float(codes[i]));
  }
}

}  // namespace lowrank::LRC_LEVEL
