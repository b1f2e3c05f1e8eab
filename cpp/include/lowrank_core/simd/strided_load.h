// strided_load: the Load (simd/pack.h) of a plain array of one type, of any strides.
#pragma once

#include <type_traits>

#include "lowrank_core/simd/nest.h"
#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

template <class T>
struct StridedLoad {
  static constexpr bool kBfloat16 = std::is_same_v<T, bfloat16>;

  const T* data;
  int64_t outer_size, depth_size;
  int64_t outer_stride, depth_stride;
  bool depth_major;

  const T* at(int64_t o, int64_t p) const { return data + o * outer_stride + p * depth_stride; }

  template <class A, bool kChecked>
  LRC_INLINE Vec<A> outer(int64_t o, int64_t p) const {
    if constexpr (!kChecked) return load<A>(at(o, p));
    return p < depth_size ? first<A>(at(o, p), outer_stride, outer_size - o) : Vec<A>{};
  }
  template <class A, bool kChecked>
  LRC_INLINE Vec<A> depth(int64_t o, int64_t p) const {
    if constexpr (!kChecked) return load<A>(at(o, p));
    return o < outer_size ? first<A>(at(o, p), depth_stride, depth_size - p) : Vec<A>{};
  }

  int64_t whole_outer(int64_t o, int64_t p, int64_t count) const {
    return outer_stride == 1 && p < depth_size ? smaller(count, outer_size - o) : 0;
  }
  int64_t whole_depth(int64_t o, int64_t p, int64_t count) const {
    return depth_stride == 1 && o < outer_size ? smaller(count, depth_size - p) : 0;
  }

  Ahead ahead(const Slab& slab) const {
    const int64_t lines = smaller(slab.lines(), outer_size - slab.outer);
    const int64_t length = smaller(slab.length, depth_size - slab.depth);
    const auto* from = reinterpret_cast<const char*>(at(slab.outer, slab.depth));
    constexpr int64_t item = sizeof(T);
    if (depth_stride == 1) return {from, lines, length * item, outer_stride * item};
    if (outer_stride == 1) return {from, length, lines * item, depth_stride * item};
    return {};
  }

 private:
  template <class A>
  static LRC_INLINE Vec<A> first(const T* from, int64_t stride, int64_t left) {
    if (left <= 0) return Vec<A>{};
    if (stride == 1) return load_first<A>(from, left);
    Vec<A> v{};
    for (int i = 0; i < kLanes<A> && i < left; ++i) v[i] = A(to_float(from[i * stride]));
    return v;
  }
};

}  // namespace
}  // namespace lowrank::LRC_LEVEL
