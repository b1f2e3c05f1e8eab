// pack: operands into the panels that the micro-kernel reads, with the conversion to the type it multiplies.
//
// A Load offers, for an operand of any storage:
//   bool depth_major                        which of the two directions is cheap to walk along
//   Vec<A> outer<A>(outer, depth) const     elements (outer .. outer + kLanes<A>, depth)
//   Vec<A> depth<A>(outer, depth) const     elements (outer, depth .. depth + kLanes<A>)
// with A float or double, and 0 for every element outside the operand.
#pragma once

#include "lowrank_core/simd/nest.h"
#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

// Packed elements along k in one block, and rows and columns of the register tile. 14 x 2 of the 32 registers of
// AVX-512 hold sums, 6 x 2 of the 16 of AVX2 and SSE; a block of A (14 x 256 floats) then fits half of a 32 KB L1.
constexpr int kDepth = 256;
constexpr int kRows = kVectorBytes == 64 ? 14 : 6;
constexpr int kColumnVectors = 2;

// ---- what is packed, and how it is multiplied --------------------------------------------------------------------

template <class T>
struct Plain {
  using Packed = T;
  using Acc = T;
  static constexpr int kPerPacked = 1;  // elements along k in one packed element

  template <class Load>
  static LRC_HD Vec<T> outer(const Load& load, int64_t o, int64_t p) {
    return load.template outer<T>(o, p);
  }
  template <class Load>
  static LRC_HD Vec<T> depth(const Load& load, int64_t o, int64_t p) {
    return load.template depth<T>(o, p);
  }
  static LRC_HD Vec<T> multiply_accumulate(Vec<T> sum, T a, Vec<T> b) { return multiply_add(broadcast(a), b, sum); }
};

struct Rounded : Plain<float> {
  template <class Load>
  static LRC_HD Vec<float> outer(const Load& load, int64_t o, int64_t p) {
    return round_to_bfloat16(load.template outer<float>(o, p));
  }
  template <class Load>
  static LRC_HD Vec<float> depth(const Load& load, int64_t o, int64_t p) {
    return round_to_bfloat16(load.template depth<float>(o, p));
  }
};

#if defined(__AVX512BF16__)
// Two neighbours along k, the even one in the lower half. vdpbf16ps takes denormals for zero and rounds the sum of the
// two products its own way, so it agrees with Rounded within the error bound and not to the bit.
struct Pairs {
  using Packed = uint32_t;
  using Acc = float;
  static constexpr int kPerPacked = 2;

  template <class Load>
  static LRC_HD Vec<uint32_t> outer(const Load& load, int64_t o, int64_t p) {
    const auto even = bits_as<Vec<uint32_t>>(Rounded::outer(load, o, p));
    const auto odd = bits_as<Vec<uint32_t>>(Rounded::outer(load, o, p + 1));
    return odd | (even >> 16);
  }
  template <class Load>
  static LRC_HD Vec<uint32_t> depth(const Load& load, int64_t o, int64_t p) {
    const __m512 first = load.template depth<float>(o, p);
    const __m512 second = load.template depth<float>(o, p + kLanes<float>);
    return bits_as<Vec<uint32_t>>(_mm512_cvtne2ps_pbh(second, first));
  }
  static LRC_HD Vec<float> multiply_accumulate(Vec<float> sum, uint32_t a, Vec<uint32_t> b) {
    return _mm512_dpbf16_ps(sum, bits_as<__m512bh>(broadcast(a)), bits_as<__m512bh>(b));
  }
};
#endif

// ---- panels ------------------------------------------------------------------------------------------------------

// panel [width][kDepth]: `length` elements along k of `width` rows.
template <class P, class Load>
void pack_by_depth(const void* self, int64_t outer, int64_t depth, int64_t length, void* panel, int width) {
  const Load& load = *static_cast<const Load*>(self);
  auto* to = static_cast<typename P::Packed*>(panel);
  constexpr int lanes = kLanes<typename P::Packed>;
  for (int i = 0; i < width; ++i) {
    for (int64_t p = 0; p * P::kPerPacked < length; p += lanes) {
      store_bits(to + i * kDepth + p, P::depth(load, outer + i, depth + p * P::kPerPacked));
    }
  }
}

// panel [length][width], width a multiple of the lanes.
template <class P, class Load>
void pack_by_outer(const void* self, int64_t outer, int64_t depth, int64_t length, void* panel, int width) {
  const Load& load = *static_cast<const Load*>(self);
  auto* to = static_cast<typename P::Packed*>(panel);
  constexpr int lanes = kLanes<typename P::Packed>;
  const int64_t packed = (length + P::kPerPacked - 1) / P::kPerPacked;
  if (!load.depth_major) {
    for (int64_t p = 0; p < packed; ++p) {
      for (int j = 0; j < width; j += lanes) {
        store_bits(to + p * width + j, P::outer(load, outer + j, depth + p * P::kPerPacked));
      }
    }
    return;
  }
  for (int j = 0; j < width; j += lanes) {
    for (int64_t p = 0; p < packed; p += lanes) {
      Vec<typename P::Packed> block[lanes];
      for (int i = 0; i < lanes; ++i) block[i] = P::depth(load, outer + j + i, depth + p * P::kPerPacked);
      transpose(block);
      for (int i = 0; i < lanes && p + i < packed; ++i) store_bits(to + (p + i) * width + j, block[i]);
    }
  }
}

template <class P, class Load>
Operand operand(const Load& load) {
  return {&load, pack_by_depth<P, Load>, pack_by_outer<P, Load>, load.depth_major};
}

// ---- the Load of plain arrays ------------------------------------------------------------------------------------

template <class T>
struct Dense {
  const T* data;
  int64_t outer_size, depth_size;
  int64_t outer_stride, depth_stride;
  bool depth_major;

  const T* at(int64_t o, int64_t p) const { return data + o * outer_stride + p * depth_stride; }

  template <class A>
  LRC_HD Vec<A> outer(int64_t o, int64_t p) const {
    return o < outer_size && p < depth_size ? run<A>(at(o, p), outer_stride, outer_size - o) : Vec<A>{};
  }
  template <class A>
  LRC_HD Vec<A> depth(int64_t o, int64_t p) const {
    return o < outer_size && p < depth_size ? run<A>(at(o, p), depth_stride, depth_size - p) : Vec<A>{};
  }

 private:
  template <class A>
  static LRC_HD Vec<A> run(const T* from, int64_t stride, int64_t left) {
    if (stride == 1 && left >= kLanes<A>) return load<A>(from);
    Vec<A> v{};
    for (int i = 0; i < kLanes<A> && i < left; ++i) v[i] = A(to_float(from[i * stride]));
    return v;
  }
};

}  // namespace
}  // namespace lowrank::LRC_LEVEL
