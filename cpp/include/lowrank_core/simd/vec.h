// vec: the vectors of the instruction-set level that a file in cpp/src/*/levels is compiled for.
//
// Built on the vector extension of GCC and Clang, so arithmetic, shuffles and conversions are written once; the few
// instructions that no portable expression reaches (fused multiply-add, half precision, bfloat16 pairs) are below.
// Everything here and in the other simd headers is in an unnamed namespace: a weak symbol compiled with wide flags
// could be the copy that the linker keeps for all levels.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "lowrank_core/half.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lowrank::LRC_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vector = typename VectorOf<T, N>::type;

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));
template <class T>
using Vec = Vector<T, kLanes<T>>;

// std::min and std::max would be weak symbols in a build that does not inline them.
LRC_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
LRC_INLINE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// The bits of one vector as another of the same size.
template <class To, class From>
LRC_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class V, class T>
LRC_INLINE V load_bits(const T* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
LRC_INLINE void store_bits(T* to, const V& v) {
  memcpy(to, &v, sizeof v);
}

template <class T>
LRC_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// ---- arithmetic that the build's -ffp-contract=off leaves to be asked for ----------------------------------------

// a * b + c, rounded once where the level has the instruction.
LRC_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

LRC_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// ---- storage types to vectors of float or double -----------------------------------------------------------------

template <int N>
LRC_INLINE Vector<float, N> widen(const float* from) {
  return load_bits<Vector<float, N>>(from);
}

template <int N>
LRC_INLINE Vector<float, N> widen(const bfloat16* from) {
  const auto halves = load_bits<Vector<uint16_t, N>>(from);
  return bits_as<Vector<float, N>>(__builtin_convertvector(halves, Vector<uint32_t, N>) << 16);
}

template <int N>
LRC_INLINE Vector<float, N> widen(const float16* from) {
#if defined(__AVX512F__)
  // The masked form, because GCC 12 warns of an uninitialised value inside the plain one.
  if constexpr (N == 16) return _mm512_maskz_cvtph_ps(0xFFFF, load_bits<__m256i>(from));
#endif
#if defined(__F16C__)
  if constexpr (N == 8) return _mm256_cvtph_ps(load_bits<__m128i>(from));
  if constexpr (N == 4) {
    __m128i halves = _mm_setzero_si128();
    memcpy(&halves, from, 4 * sizeof *from);
    return _mm_cvtph_ps(halves);
  }
#else
  Vector<float, N> v;
  for (int i = 0; i < N; ++i) v[i] = to_float(from[i]);
  return v;
#endif
}

template <int N>
LRC_INLINE Vector<double, N> widen(const double* from) {
  return load_bits<Vector<double, N>>(from);
}

// kLanes<A> consecutive elements of any storage type as float or double.
template <class A, class T>
LRC_INLINE Vec<A> load(const T* from) {
  return __builtin_convertvector(widen<kLanes<A>>(from), Vec<A>);
}

// The first `count` of them, and 0 beyond: nothing past the last is read.
template <class A, class T>
LRC_INLINE Vec<A> load_first(const T* from, int64_t count) {
  constexpr size_t whole = kLanes<A> * sizeof(T);
  const size_t bytes = size_t(count) < size_t(kLanes<A>) ? size_t(count) * sizeof(T) : whole;
#if defined(__AVX512BW__)
  alignas(64) char copy[whole < 64 ? 64 : whole];
  for (size_t done = 0; done < whole; done += 64) {
    const uint64_t mask = _bzhi_u64(~uint64_t(0), uint32_t(bytes > done ? bytes - done : 0));
    store_bits(copy + done, _mm512_maskz_loadu_epi8(mask, reinterpret_cast<const char*>(from) + done));
  }
#else
  alignas(64) char copy[whole] = {};
  memcpy(copy, from, bytes);
#endif
  return load<A>(reinterpret_cast<const T*>(copy));
}

// ---- bfloat16 ----------------------------------------------------------------------------------------------------

// What to_bfloat16() does, left in the upper half of each float: ties to even, NaN stays NaN.
LRC_INLINE Vec<float> round_to_bfloat16(Vec<float> x) {
  const auto u = bits_as<Vec<uint32_t>>(x);
  const auto rounded = u + 0x7FFFu + ((u >> 16) & 1u);
  const auto kept = (u & 0x7FFFFFFFu) > 0x7F800000u ? (u | 0x00400000u) : rounded;
  return bits_as<Vec<float>>(kept & 0xFFFF0000u);
}

// What to_bfloat16() does with random bits: the same.
LRC_INLINE Vec<float> round_to_bfloat16(Vec<float> x, Vec<uint32_t> random) {
  const auto u = bits_as<Vec<uint32_t>>(x), raised = u + (random >> 16);
  const auto finite = (raised & 0x7FFFFFFFu) >= 0x7F800000u ? u : raised;
  const auto kept = (u & 0x7FFFFFFFu) > 0x7F800000u ? (u | 0x00400000u) : finite;
  return bits_as<Vec<float>>(kept & 0xFFFF0000u);
}

// Both leave a bfloat16 in the upper half of a float: these halves side by side.
LRC_INLINE Vector<uint16_t, kLanes<float>> upper_halves(Vec<float> x) {
  return __builtin_convertvector(bits_as<Vec<uint32_t>>(x) >> 16, Vector<uint16_t, kLanes<float>>);
}

// ---- transposition -----------------------------------------------------------------------------------------------

// One step of the recursive transposition: swaps the off-diagonal S x S blocks of every 2S x 2S block.
template <int S, class V, size_t... L>
LRC_INLINE void swap_blocks(V& upper, V& lower, std::index_sequence<L...>) {
  constexpr int n = sizeof...(L);
  const V a = upper, b = lower;
  upper = __builtin_shufflevector(a, b, (int(L) & S ? n + int(L) - S : int(L))...);
  lower = __builtin_shufflevector(a, b, (int(L) & S ? n + int(L) : int(L) + S)...);
}

template <int S, int N, class V>
LRC_INLINE void transpose_step(V (&rows)[N]) {
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    if ((i & S) == 0) swap_blocks<S>(rows[i], rows[i + S], std::make_index_sequence<N>());
  }
  if constexpr (S > 1) transpose_step<S / 2>(rows);
}

// rows[i][j] <- rows[j][i] for as many vectors as one vector has lanes.
template <int N, class V>
LRC_INLINE void transpose(V (&rows)[N]) {
  transpose_step<N / 2>(rows);
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL
