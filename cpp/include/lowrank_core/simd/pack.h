// pack: operands into the panels that the micro-kernel reads, converted to the type that it multiplies.
//
// A Load offers, for an operand of any storage, with A = float or double:
//   bool depth_major                                  lines are stored along k
//   static constexpr bool kBfloat16                   every element is a bfloat16 already, and `at(outer, depth)`
//   points
//                                                     to it
//   Vec<A> outer<A, kChecked>(outer, depth) const     elements (outer .. outer + kLanes<A>, depth)
//   Vec<A> depth<A, kChecked>(outer, depth) const     elements (outer, depth .. depth + kLanes<A>)
//                                                     kChecked: 0 for every element outside the operand
//   int64_t whole_outer(outer, depth, count) const    how many of `count` elements along that direction, starting here,
//   int64_t whole_depth(outer, depth, count) const    whole vectors may be read from without being checked
//   Ahead ahead(slab) const                           what to prefetch before the slab is packed
#pragma once

#include "lowrank_core/simd/nest.h"
#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

// Packed elements along k in one block, and rows and columns of the register tile. 14 x 2 of the 32 registers of
// AVX-512 hold sums, 6 x 2 of the 16 of AVX2 and SSE; a panel of A (14 x 256 floats) then fits half of a 32 KB L1.
constexpr int kDepth = 256;
constexpr int kRows = kVectorBytes == 64 ? 14 : 6;
constexpr int kColumnVectors = 2;
constexpr int kTileRows = 32;  // of Arithmetic::kTiles; its columns are as many as those of vectors of the same level

// The rows or the columns that an epilogue gets at a time.
LRC_INLINE int rows_of_tile(Arithmetic arithmetic) { return arithmetic == Arithmetic::kTiles ? kTileRows : kRows; }
LRC_INLINE int columns_of_tile(Arithmetic arithmetic) {
  return kColumnVectors * (arithmetic == Arithmetic::kFloat64 ? kLanes<double> : kLanes<float>);
}

// ---- what is packed, and how it is multiplied --------------------------------------------------------------------

template <class T>
struct Plain {
  using Packed = T;
  using Acc = T;
  static constexpr int kPerPacked = 1;  // elements along k in one packed element

  template <bool kChecked, class Load>
  static LRC_INLINE Vec<T> outer(const Load& load, int64_t o, int64_t p) {
    return load.template outer<T, kChecked>(o, p);
  }
  template <bool kChecked, class Load>
  static LRC_INLINE Vec<T> depth(const Load& load, int64_t o, int64_t p) {
    return load.template depth<T, kChecked>(o, p);
  }
  static LRC_INLINE Vec<T> multiply_accumulate(Vec<T> sum, T a, Vec<T> b) { return multiply_add(broadcast(a), b, sum); }
};

struct Rounded : Plain<float> {
  template <bool kChecked, class Load>
  static LRC_INLINE Vec<float> outer(const Load& load, int64_t o, int64_t p) {
    const Vec<float> x = load.template outer<float, kChecked>(o, p);
    return Load::kBfloat16 ? x : round_to_bfloat16(x);
  }
  template <bool kChecked, class Load>
  static LRC_INLINE Vec<float> depth(const Load& load, int64_t o, int64_t p) {
    const Vec<float> x = load.template depth<float, kChecked>(o, p);
    return Load::kBfloat16 ? x : round_to_bfloat16(x);
  }
};

#if defined(__AVX512BF16__)
// Two neighbours along k, the even one in the lower half. vcvtne2ps2bf16 rounds as Rounded does but takes denormals for
// zero, as vdpbf16ps does with its operands. That one also rounds the sum of the two products its own way, so it agrees
// with Rounded within the error bound and not to the bit.
struct Pairs {
  using Packed = uint32_t;
  using Acc = float;
  static constexpr int kPerPacked = 2;

  template <bool kChecked, class Load>
  static LRC_INLINE Vec<uint32_t> outer(const Load& load, int64_t o, int64_t p) {
    if constexpr (Load::kBfloat16 && !kChecked) {
      return interleave(load_bits<Half>(load.at(o, p)), load_bits<Half>(load.at(o, p + 1)));
    } else {
      const __m512 even = load.template outer<float, kChecked>(o, p);
      const __m512 odd = load.template outer<float, kChecked>(o, p + 1);
      return interleave(bits_as<Halves>(_mm512_cvtne2ps_pbh(odd, even)));
    }
  }
  template <bool kChecked, class Load>
  static LRC_INLINE Vec<uint32_t> depth(const Load& load, int64_t o, int64_t p) {
    if constexpr (Load::kBfloat16 && !kChecked) {
      return load_bits<Vec<uint32_t>>(load.at(o, p));
    } else {
      const __m512 first = load.template depth<float, kChecked>(o, p);
      const __m512 second = load.template depth<float, kChecked>(o, p + kLanes<float>);
      return bits_as<Vec<uint32_t>>(_mm512_cvtne2ps_pbh(second, first));
    }
  }
  static LRC_INLINE Vec<float> multiply_accumulate(Vec<float> sum, uint32_t a, Vec<uint32_t> b) {
    return _mm512_dpbf16_ps(sum, bits_as<__m512bh>(broadcast(a)), bits_as<__m512bh>(b));
  }

 private:
  using Half = Vector<uint16_t, kLanes<uint32_t>>;
  using Halves = Vec<uint16_t>;

  static LRC_INLINE Vec<uint32_t> interleave(const Half& even, const Half& odd) {
    return interleave(even, odd, std::make_index_sequence<kLanes<uint16_t>>());
  }
  // The lower half is of the even ones, the upper of the odd ones.
  static LRC_INLINE Vec<uint32_t> interleave(const Halves& both) {
    return interleave(both, both, std::make_index_sequence<kLanes<uint16_t>>());
  }
  template <class V, size_t... L>
  static LRC_INLINE Vec<uint32_t> interleave(const V& a, const V& b, std::index_sequence<L...>) {
    return bits_as<Vec<uint32_t>>(__builtin_shufflevector(a, b, int(L % 2 * kLanes<uint32_t> + L / 2)...));
  }
};
#endif

// ---- panels ------------------------------------------------------------------------------------------------------

template <class P, class Load>
class Packer {
 public:
  using Packed = typename P::Packed;

  Packer(const void* load, const Slab& slab) : load_(*static_cast<const Load*>(load)), slab_(slab) {}

  // panels [count][width][kDepth]; width a multiple of the lanes where the lines are not stored along k
  void by_depth(Packed* panels) const {
    if (!load_.depth_major) return lines_across(panels);
    for (int c = 0; c < slab_.count; ++c) {
      for (int i = 0; i < slab_.width; ++i) {
        line(slab_.outer + c * slab_.step + i, panels + (int64_t(c) * slab_.width + i) * kDepth);
      }
    }
  }

  // panels [count][kDepth][width], width a multiple of the lanes
  void by_outer(Packed* panels) const {
    if (!load_.depth_major) return across(panels);
    for (int c = 0; c < slab_.count; ++c) {
      for (int j = 0; j < slab_.width; j += kLane) {
        transposed(slab_.outer + c * slab_.step + j, panels + int64_t(c) * slab_.width * kDepth + j);
      }
    }
  }

 private:
  static constexpr int kLane = kLanes<Packed>;
  static constexpr int kChunk = kLane * P::kPerPacked;  // elements along k that one vector packs

  void line(int64_t outer, Packed* to) const {
    const int64_t whole = load_.whole_depth(outer, slab_.depth, slab_.length);
    int64_t p = 0;
    for (; p + kChunk <= whole; p += kChunk) {
      store_bits(to + p / P::kPerPacked, P::template depth<false>(load_, outer, slab_.depth + p));
    }
    for (; p < slab_.length; p += kChunk) {
      store_bits(to + p / P::kPerPacked, P::template depth<true>(load_, outer, slab_.depth + p));
    }
  }

  // As many lines at a time as a vector has lanes, read across k and transposed; all panels before the next vectors
  // along k, so that memory is read in long runs.
  void lines_across(Packed* panels) const {
    for (int64_t p = 0; p < slab_.length; p += kChunk) {
      for (int c = 0; c < slab_.count; ++c) {
        Packed* const to = panels + int64_t(c) * slab_.width * kDepth + p / P::kPerPacked;
        for (int i = 0; i < slab_.width; i += kLane) {
          Vec<Packed> block[kLane];
          read_across(slab_.outer + c * slab_.step + i, slab_.depth + p, block);
          transpose(block);
          for (int j = 0; j < kLane; ++j) store_bits(to + int64_t(i + j) * kDepth, block[j]);
        }
      }
    }
  }

  void read_across(int64_t outer, int64_t depth, Vec<Packed> (&block)[kLane]) const {
    if (load_.whole_outer(outer, depth + kChunk - 1, kLane) == kLane) {
      for (int i = 0; i < kLane; ++i) block[i] = P::template outer<false>(load_, outer, depth + i * P::kPerPacked);
    } else {
      for (int i = 0; i < kLane; ++i) block[i] = P::template outer<true>(load_, outer, depth + i * P::kPerPacked);
    }
  }

  // A few positions along k of all panels at a time, so that lines of memory that two panels share are read once.
  void across(Packed* panels) const {
    constexpr int64_t few = 16;
    const int64_t packed = (slab_.length + P::kPerPacked - 1) / P::kPerPacked;
    for (int64_t p = 0; p < packed; p += few) {
      const int64_t count = p + few < packed ? few : packed - p;
      for (int c = 0; c < slab_.count; ++c) {
        Packed* const to = panels + (int64_t(c) * kDepth + p) * slab_.width;
        for (int j = 0; j < slab_.width; j += kLane) {
          vectors(slab_.outer + c * slab_.step + j, slab_.depth + p * P::kPerPacked, count, to + j);
        }
      }
    }
  }

  // `count` vectors along the outer direction, one below the other.
  void vectors(int64_t outer, int64_t depth, int64_t count, Packed* to) const {
    if (load_.whole_outer(outer, depth + count * P::kPerPacked - 1, kLane) == kLane) {
      for (int64_t p = 0; p < count; ++p) {
        store_bits(to + p * slab_.width, P::template outer<false>(load_, outer, depth + p * P::kPerPacked));
      }
    } else {
      for (int64_t p = 0; p < count; ++p) {
        store_bits(to + p * slab_.width, P::template outer<true>(load_, outer, depth + p * P::kPerPacked));
      }
    }
  }

  void transposed(int64_t outer, Packed* to) const {
    const int64_t whole = load_.whole_depth(outer + kLane - 1, slab_.depth, slab_.length);
    for (int64_t p = 0; p < slab_.length; p += kChunk) {
      const int64_t depth = slab_.depth + p;
      Vec<Packed> block[kLane];
      if (p + kChunk <= whole) {
        for (int i = 0; i < kLane; ++i) block[i] = P::template depth<false>(load_, outer + i, depth);
      } else {
        for (int i = 0; i < kLane; ++i) block[i] = P::template depth<true>(load_, outer + i, depth);
      }
      transpose(block);
      Packed* const row = to + p / P::kPerPacked * slab_.width;
      for (int i = 0; i < kLane && p + i * P::kPerPacked < slab_.length; ++i)
        store_bits(row + i * slab_.width, block[i]);
    }
  }

  const Load load_;  // copies, which the stores into the panels cannot alias
  const Slab slab_;
};

template <class P, class Load>
Operand operand(const Load& load) {
  using Packed = typename P::Packed;
  return {&load,
          [](const void* self, const Slab& slab, void* to) {
            Packer<P, Load>(self, slab).by_depth(static_cast<Packed*>(to));
          },
          [](const void* self, const Slab& slab, void* to) {
            Packer<P, Load>(self, slab).by_outer(static_cast<Packed*>(to));
          },
          [](const void* self, const Slab& slab) { return static_cast<const Load*>(self)->ahead(slab); },
          load.depth_major};
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
