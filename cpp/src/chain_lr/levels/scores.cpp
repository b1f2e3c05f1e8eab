// Tiles of attention scores: products of a few rows with the keys, softmax weights, and sums of keys. The scores of
// kScoreRows queries and kScoreCols keys exist at a time.
#include "chain_lr/level.h"

#include "lowrank_core/integers.h"
#include "lowrank_core/simd/exp.h"

namespace lowrank::LRC_LEVEL {
namespace {

using namespace chain_lr;

// Rows of a register tile: with two vectors each they leave room for what is loaded.
constexpr int kStrip = kVectorBytes == 64 ? 8 : 4;
constexpr int kVectors = 2;

// out [kScoreRows, count] <- start + left [kScoreRows, depth] right [depth, count]; `count` a multiple of kKeyPad.
template <class T>
void product_tile(const T* left, int64_t depth, const T* right, int64_t right_step, const T* start, int64_t count,
                  T* out) {
  constexpr int64_t step = kVectors * kLanes<T>;
  for (int64_t j = 0; j < count; j += step) {
    for (int64_t i = 0; i < kScoreRows; i += kStrip) {
      Vec<T> sum[kStrip][kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const Vec<T> first = start ? load<T>(start + j + v * kLanes<T>) : Vec<T>{};
        for (int k = 0; k < kStrip; ++k) sum[k][v] = first;
      }
      for (int64_t p = 0; p < depth; ++p) {
        Vec<T> x[kVectors];
        for (int v = 0; v < kVectors; ++v) x[v] = load<T>(right + p * right_step + j + v * kLanes<T>);
#pragma GCC unroll 8
        for (int k = 0; k < kStrip; ++k) {
          const Vec<T> factor = broadcast(left[(i + k) * depth + p]);
          for (int v = 0; v < kVectors; ++v) sum[k][v] = multiply_add(factor, x[v], sum[k][v]);
        }
      }
      for (int k = 0; k < kStrip; ++k) {
        for (int v = 0; v < kVectors; ++v) store_bits(out + (i + k) * kScoreCols + j + v * kLanes<T>, sum[k][v]);
      }
    }
  }
}

// sums [kScoreRows, width] of each of two tiles += tile [kScoreRows, count] keys [count, width].
template <class T>
void add_keys(const T* first, const T* second, const T* keys, int64_t width, int64_t count, T* sums) {
  constexpr int rows = kStrip;
  for (int64_t c = 0; c < width; c += kLanes<T>) {
    for (int64_t i = 0; i < kScoreRows; i += rows) {
      T* const to = sums + i * 2 * width + c;
      Vec<T> a[rows], b[rows];
      for (int k = 0; k < rows; ++k) {
        a[k] = load<T>(to + k * 2 * width);
        b[k] = load<T>(to + k * 2 * width + width);
      }
      for (int64_t l = 0; l < count; ++l) {
        const Vec<T> key = load<T>(keys + l * width + c);
#pragma GCC unroll 8
        for (int k = 0; k < rows; ++k) {
          a[k] = multiply_add(broadcast(first[(i + k) * kScoreCols + l]), key, a[k]);
          b[k] = multiply_add(broadcast(second[(i + k) * kScoreCols + l]), key, b[k]);
        }
      }
      for (int k = 0; k < rows; ++k) {
        store_bits(to + k * 2 * width, a[k]);
        store_bits(to + k * 2 * width + width, b[k]);
      }
    }
  }
}

template <class T>
LRC_INLINE T fold_sum(const Vec<T>& x) {
  T lane[kLanes<T>];
  store_bits(lane, x);
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

template <class T>
LRC_INLINE T fold_max(const Vec<T>& x) {
  T lane[kLanes<T>], largest;
  store_bits(lane, x);
  largest = lane[0];
  for (int i = 1; i < kLanes<T>; ++i) largest = lane[i] > largest ? lane[i] : largest;
  return largest;
}

// Scores of one row become weights, dP becomes weight times dP; the sums of the row before are rescaled where the
// maximum has grown. `sums`: 2 width numbers.
template <class T>
void weigh(T* scores, T* dp, int64_t count, RunningRow<T>& row, T* sums, int64_t width) {
  Vec<T> largest = broadcast(row.max);
  for (int64_t j = 0; j < count; j += kLanes<T>) {
    const Vec<T> s = load<T>(scores + j);
    largest = s > largest ? s : largest;
  }
  const T max = fold_max<T>(largest);
  if (max > row.max) {
    const T factor = fold_max<T>(exp_negative<T>(broadcast(row.max - max)));  // every lane is the same
    row.grow(max, factor);
    for (int64_t c = 0; c < 2 * width; ++c) sums[c] *= factor;
  }
  const Vec<T> shift = broadcast(row.shift());
  Vec<T> sum{}, weighted{};
  for (int64_t j = 0; j < count; j += kLanes<T>) {
    const Vec<T> weight = exp_negative<T>(load<T>(scores + j) - shift);
    const Vec<T> product = weight * load<T>(dp + j);
    sum += weight;
    weighted += product;
    store_bits(scores + j, weight);
    store_bits(dp + j, product);
  }
  row.add(fold_sum<T>(sum), fold_sum<T>(weighted));
}

// Columns of a tile from `begin` on, as far as any of the rows sees.
template <class T>
int64_t tile_size(const ScoreRows<T>& rows, int64_t begin) {
  int64_t end = smaller(begin + kScoreCols, rows.keys);
  if (rows.causal) end = smaller(end, round_up(rows.first_row + kScoreRows, kKeyPad));
  return end - begin;
}

template <class T>
void gradient_rows(const ScoreRows<T>& rows, T* out, T* scratch) {
  T *const scores = scratch, *const dp = scores + kScoreRows * kScoreCols, *const sums = dp + kScoreRows * kScoreCols;
  const int64_t width = rows.width;
  RunningRow<T> row[kScoreRows];
  for (int64_t c = 0; c < kScoreRows * 2 * width; ++c) sums[c] = T(0);
  for (int64_t begin = 0, count; begin < rows.keys && (count = tile_size(rows, begin)) > 0; begin += kScoreCols) {
    product_tile(rows.queries, rows.depth, rows.keys_t + begin, rows.keys, rows.bias + begin, count, scores);
    product_tile(rows.dout, rows.value_depth, rows.values_t + begin, rows.keys, static_cast<const T*>(nullptr), count,
                 dp);
    for (int64_t i = 0; i < kScoreRows; ++i) {
      T* const line = scores + i * kScoreCols;
      for (int64_t j = larger(0, rows.first_row + i + 1 - begin); rows.causal && j < count; ++j) {
        line[j] = T(-__builtin_huge_val());
      }
      weigh(line, dp + i * kScoreCols, count, row[i], sums + i * 2 * width, width);
    }
    add_keys(scores, dp, rows.keys_by_row + begin * width, width, count, sums);
  }
  for (int64_t i = 0; i < kScoreRows; ++i) {
    const T scale = row[i].scale(), rho = row[i].rho();
    const T* const plain = sums + i * 2 * width;
    for (int64_t c = 0; c < width; ++c) out[i * width + c] = gradient_entry(plain[width + c], plain[c], rho, scale);
  }
}

template <class T>
double largest(const ScoreTile<T>& tile) {
  T scores[kScoreRows * kScoreCols];
  product_tile(tile.queries, tile.depth, tile.keys_t, tile.step, static_cast<const T*>(nullptr), tile.count, scores);
  Vec<T> largest{};
  for (int64_t i = 0; i < kScoreRows; ++i) {
    const Vec<T> place = broadcast(tile.query_places[i]);
    for (int64_t j = 0; j < tile.count; j += kLanes<T>) {
      const Vec<T> s = load<T>(scores + i * kScoreCols + j), size = s < Vec<T>{} ? -s : s;
      largest = (load<T>(tile.key_places + j) <= place) & (size > largest) ? size : largest;
    }
  }
  return double(fold_max<T>(largest));
}

}  // namespace

}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const chain_lr::ScoreLevel chain_lr::ScoreLevel::LRC_LEVEL = {
    {{LRC_LEVEL::gradient_rows<float>, LRC_LEVEL::largest<float>},
     {LRC_LEVEL::gradient_rows<double>, LRC_LEVEL::largest<double>}}};

}  // namespace lowrank
