// Products of thin factors: nothing is packed, because each number of the right one is used too seldom to repay it.
#include "chain_lr/level.h"

#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

using namespace chain_lr;

// Rows of a register tile: with two vectors each they leave room for what is loaded.
constexpr int kStrip = kVectorBytes == 64 ? 8 : 4;
constexpr int kVectors = 2;

// The first `count` lanes.
template <class T>
LRC_INLINE void store_first(T* to, const Vec<T>& v, int64_t count) {
#if defined(__AVX512BW__)
  const uint64_t mask = _bzhi_u64(~uint64_t(0), uint32_t(size_t(count) * sizeof(T)));
  _mm512_mask_storeu_epi8(to, mask, bits_as<__m512i>(v));
#else
  T lane[kLanes<T>];
  store_bits(lane, v);
  for (int64_t i = 0; i < count; ++i) to[i] = lane[i];
#endif
}

// R rows and V vectors of columns from (i, j) on; of the last vector all lanes (kWhole), or the first `count`.
template <class T, int R, int V, bool kWhole>
LRC_INLINE void tile(const DirectProduct<T>& p, int64_t i, int64_t j, int64_t count) {
  constexpr int lanes = kLanes<T>, last = V - 1;
  T* const c = p.c + i * p.c_step + j;
  const T *const a = p.a + i * p.a_row, *const b = p.b + j;
  Vec<T> sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const T* const from = c + r * p.c_step + v * lanes;
      sum[r][v] = !p.add ? Vec<T>{} : v < last || kWhole ? load<T>(from) : load_first<T>(from, count);
    }
  }
  // Beyond the last column a load reads the rows that follow, as long as there are any.
  const int64_t free = kWhole ? p.depth : larger(0, p.depth - 1 - (lanes - count + p.b_step - 1) / p.b_step);
  for (int64_t d = 0; d < p.depth; ++d) {
    const T* const from = b + d * p.b_step;
    Vec<T> right[V];
#pragma GCC unroll 2
    for (int v = 0; v < last; ++v) right[v] = load<T>(from + v * lanes);
    right[last] = kWhole || d < free ? load<T>(from + last * lanes) : load_first<T>(from + last * lanes, count);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> left = broadcast(a[r * p.a_row + d * p.a_col]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] = multiply_add(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      T* const to = c + r * p.c_step + v * lanes;
      if (v < last || kWhole) {
        store_bits(to, sum[r][v]);
      } else {
        store_first<T>(to, sum[r][v], count);
      }
    }
  }
}

template <class T, int V, bool kWhole>
void columns(const DirectProduct<T>& p, int64_t j, int64_t count) {
  int64_t i = 0;
  for (; i + kStrip <= p.rows; i += kStrip) tile<T, kStrip, V, kWhole>(p, i, j, count);
  for (; i + 4 <= p.rows; i += 4) tile<T, 4, V, kWhole>(p, i, j, count);
  for (; i + 2 <= p.rows; i += 2) tile<T, 2, V, kWhole>(p, i, j, count);
  if (i < p.rows) tile<T, 1, V, kWhole>(p, i, j, count);
}

template <class T, int V>
void columns(const DirectProduct<T>& p, int64_t j, int64_t count) {
  if (count == kLanes<T>) return columns<T, V, true>(p, j, count);
  columns<T, V, false>(p, j, count);
}

template <class T>
void multiply(const DirectProduct<T>& p) {
  constexpr int64_t lanes = kLanes<T>, width = kVectors * lanes;
  for (int64_t j = 0; j < p.cols; j += width) {
    const int64_t left = smaller(width, p.cols - j);
    if (left > lanes) {
      columns<T, kVectors>(p, j, left - lanes);
    } else {
      columns<T, 1>(p, j, left);
    }
  }
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const chain_lr::ProductLevel chain_lr::ProductLevel::LRC_LEVEL = {
    {{LRC_LEVEL::multiply<float>}, {LRC_LEVEL::multiply<double>}}};

}  // namespace lowrank
