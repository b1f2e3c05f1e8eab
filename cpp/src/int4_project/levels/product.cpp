// Products with a packed matrix: codes become floats while they are packed into the panels of the nest.
#include "int4_project/level.h"

#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/dense_load.h"
#include "lowrank_core/simd/tile_store.h"

namespace lowrank::LRC_LEVEL {
namespace {

using int4_project::PackedMatrix;
using int4_project::PackedProduct;

// ---- codes to vectors --------------------------------------------------------------------------------------------

template <int N>
LRC_INLINE Vector<float, N> nf4_levels(Vector<int32_t, N> codes) {
  alignas(64) float table[16];
  for (int i = 0; i < 16; ++i) table[i] = int4_project::nf4_level(i);
#if defined(__AVX512F__)
  // The masked form, because GCC 12 warns of an uninitialised value inside the plain one.
  if constexpr (N == 16) {
    return _mm512_maskz_permutexvar_ps(0xFFFF, bits_as<__m512i>(codes), _mm512_load_ps(table));
  }
#endif
#if defined(__AVX2__)
  if constexpr (N == 8) {  // the permutation looks at the lower three bits
    const __m256i at = bits_as<__m256i>(codes);
    const __m256 lower = _mm256_permutevar8x32_ps(_mm256_load_ps(table), at);
    const __m256 upper = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), at);
    return _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
  }
#endif
  Vector<float, N> v{};
  for (int i = 0; i < N; ++i) v[i] = table[codes[i]];
  return v;
}

template <bool kNf4, int N>
LRC_INLINE Vector<float, N> numbers(Vector<int32_t, N> codes) {
  if constexpr (kNf4) return nf4_levels<N>(codes);
  return __builtin_convertvector(codes, Vector<float, N>);
}

// GCC 12 takes a portable conversion of bytes apart.
template <int N>
LRC_INLINE Vector<int32_t, N> widen_bytes(const uint8_t* bytes) {
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    return bits_as<Vector<int32_t, N>>(_mm512_maskz_cvtepu8_epi32(0xFFFF, load_bits<__m128i>(bytes)));
  }
#endif
#if defined(__AVX2__)
  if constexpr (N == 8)
    return bits_as<Vector<int32_t, N>>(_mm256_cvtepu8_epi32(_mm_set_epi64x(0, load_bits<int64_t>(bytes))));
#endif
  return __builtin_convertvector(load_bits<Vector<uint8_t, N>>(bytes), Vector<int32_t, N>);
}

// N neighbours in one row of bytes, the codes of row i.
template <int N>
LRC_INLINE Vector<int32_t, N> codes_across(const uint8_t* bytes, int64_t i) {
  const Vector<int32_t, N> pairs = widen_bytes<N>(bytes);
  return i % 2 == 0 ? pairs & 15 : pairs >> 4;
}

// The N codes of N / 2 consecutive bytes.
template <int N>
LRC_INLINE Vector<int32_t, N> codes_along(const uint8_t* bytes) {
  uint64_t word = 0;
  memcpy(&word, bytes, N / 2);
  Vector<uint32_t, N> halves{}, shifts{};
  for (int l = 0; l < N; ++l) {
    halves[l] = l < 8 ? uint32_t(word) : uint32_t(word >> 32);
    shifts[l] = uint32_t(l % 8) * 4;
  }
  return bits_as<Vector<int32_t, N>>(halves >> shifts & 15u);
}

// ---- the Load ----------------------------------------------------------------------------------------------------

// Lines along k: rows of P (kRows) or its columns.
template <bool kNf4, bool kOfRows>
struct PackedLoad {
  static constexpr bool kBfloat16 = false;

  PackedMatrix p;
  bool depth_major;

  explicit PackedLoad(const PackedMatrix& packed)
      : p(packed),
        depth_major(kOfRows == (packed.across == 1)),
        inverse_((kOne + packed.group / kUnit - 1) / (packed.group / kUnit)) {}

  template <class A, bool kChecked>
  LRC_INLINE Vec<A> outer(int64_t o, int64_t k) const {
    return vector<A, kChecked, kOfRows>(kOfRows ? o : k, kOfRows ? k : o);
  }
  template <class A, bool kChecked>
  LRC_INLINE Vec<A> depth(int64_t o, int64_t k) const {
    return vector<A, kChecked, !kOfRows>(kOfRows ? o : k, kOfRows ? k : o);
  }

  int64_t whole_outer(int64_t o, int64_t k, int64_t count) const {
    return whole<kOfRows>(kOfRows ? o : k, kOfRows ? k : o, count);
  }
  int64_t whole_depth(int64_t o, int64_t k, int64_t count) const {
    return whole<!kOfRows>(kOfRows ? o : k, kOfRows ? k : o, count);
  }
  Ahead ahead(const Slab&) const { return {}; }  // an eighth of the traffic of floats

 private:
  static constexpr int64_t kUnit = int4_project::kGroupMultiple, kOne = int64_t(1) << 32;

  // i / group, exact for i < 2^34, without the division, which would take longer than the rest of a vector: with d the
  // group in units and n < 2^29 of them, n (d ceil(2^32 / d) - 2^32) < 2^32.
  LRC_INLINE int64_t group_of(int64_t i) const { return i / kUnit * inverse_ >> 32; }
  LRC_INLINE int64_t grid_of(int64_t i, int64_t j) const { return p.grid_of(group_of(i), j); }

  // Elements from (i, j) on, along i (kAlong) or j.
  template <class A, bool kChecked, bool kAlong>
  LRC_INLINE Vec<A> vector(int64_t i, int64_t j) const {
    constexpr int N = kLanes<A>;
    if constexpr (!kChecked && !kAlong) {
      const int64_t at = grid_of(i, j);
      const auto scale = load_bits<Vector<float, N>>(p.scale + at), base = load_bits<Vector<float, N>>(p.base + at);
      return decoded<A>(scale, base, codes_across<N>(p.byte(i, j), i));
    }
    if constexpr (!kChecked && kAlong) {
      if (group_of(i) == group_of(i + N - 1)) {
        const int64_t at = grid_of(i, j);
        const Vector<float, N> zero{}, scale = p.scale[at] - zero, base = p.base[at] - zero;
        return decoded<A>(scale, base, codes_along<N>(p.byte(i, j)));
      }
    }
    Vec<A> v{};
    for (int l = 0; l < N; ++l) v[l] = A(kAlong ? element(i + l, j) : element(i, j + l));
    return v;
  }

  template <class A>
  static LRC_INLINE Vec<A> decoded(Vector<float, kLanes<A>> scale, Vector<float, kLanes<A>> base,
                                   Vector<int32_t, kLanes<A>> codes) {
    return __builtin_convertvector(scale * numbers<kNf4, kLanes<A>>(codes) + base, Vec<A>);
  }

  LRC_INLINE float element(int64_t i, int64_t j) const {
    if (i >= p.rows || j >= p.cols) return 0.0f;
    return p.element(i, j, grid_of(i, j));
  }

  // Whole vectors follow the bytes; along i they begin with the lower half of one.
  template <bool kAlong>
  LRC_INLINE int64_t whole(int64_t i, int64_t j, int64_t count) const {
    if ((kAlong ? p.along : p.across) != 1 || i >= p.rows || j >= p.cols || (kAlong && i % 2 != 0)) return 0;
    return smaller(count, kAlong ? p.rows - i : p.cols - j);
  }

  const int64_t inverse_;
};

// ---- operands and result -----------------------------------------------------------------------------------------

template <class T, class Acc>
void store(const void* c, const void* finished) {
  store_tile<T>(*static_cast<const Matrix*>(c), *static_cast<const Tile<Acc>*>(finished),
                [](Acc sum, const T&) { return sum; });
}

template <class Acc>
Epilogue store_to(const Matrix& c) {
  return with_float_type(c.dtype, [&](auto tag) -> Epilogue { return {&c, store<decltype(tag), Acc>, nullptr}; });
}

template <class Acc, bool kNf4, bool kOfRows>
void product(const PackedProduct& p) {
  AnyLoad load;
  const PackedLoad<kNf4, kOfRows> packed(p.packed);
  const Operand lines = operand<Plain<Acc>>(packed), columns = describe<Plain<Acc>>(load, p.dense.transposed());
  const Matrix c = p.transposed ? p.c.transposed() : p.c;
  const Operand &left = p.transposed ? columns : lines, &right = p.transposed ? lines : columns;
  const auto arithmetic = sizeof(Acc) == sizeof(double) ? Arithmetic::kFloat64 : Arithmetic::kFloat32;
  multiply(arithmetic, {c.rows, c.cols, p.dense.rows, left, right, store_to<Acc>(c)});
}

template <class Acc>
void product(const PackedProduct& p) {
  if (p.of_rows) return p.packed.nf4 ? product<Acc, true, true>(p) : product<Acc, false, true>(p);
  return p.packed.nf4 ? product<Acc, true, false>(p) : product<Acc, false, false>(p);
}

void packed_product(const PackedProduct& p) {
  if (p.c.dtype == DType::kFloat64) return product<double>(p);
  product<float>(p);
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const int4_project::ProductLevel int4_project::ProductLevel::LRC_LEVEL = {LRC_LEVEL::packed_product};

}  // namespace lowrank
