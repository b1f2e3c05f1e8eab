// level: what the family asks of an instruction-set level: products of thin factors, and a few query rows against the
// keys of a head.
#pragma once

#include <cstdint>

#include "lowrank_core/chain_lr.h"
#include "lowrank_core/isa.h"

namespace lowrank::chain_lr {

// Rows and columns of a tile of scores: two of them stay in the first cache. Keys are padded to kKeyPad.
constexpr int64_t kScoreRows = 16, kScoreCols = 256, kKeyPad = 32;

// kScoreRows rows of one head. Arrays are row-major and dense; `keys` is a multiple of kKeyPad, `width` of 16, and
// what is padding is zero in all but `bias`, which holds 0 where a key is seen and -infinity where it is not.
template <class T>
struct ScoreRows {
  const T* queries;      // [kScoreRows, depth]
  const T* dout;         // [kScoreRows, value_depth]
  const T* keys_t;       // [depth, keys]
  const T* values_t;     // [value_depth, keys]
  const T* keys_by_row;  // [keys, width]
  const T* bias;         // [keys]
  int64_t depth, value_depth, keys, width;
  int64_t first_row;  // of the head; row i sees the keys up to i where `causal`
  bool causal;
};

// kScoreRows queries of one head, and `count` of its keys: a multiple of kKeyPad, at most kScoreCols. A query sees the
// keys whose place is not beyond its own.
template <class T>
struct ScoreTile {
  const T* queries;  // [kScoreRows, depth]
  const T* keys_t;   // [depth, count], a row every `step`
  const T *query_places, *key_places;
  int64_t depth, step, count;
};

template <class T>
struct ScoreFunctions {
  // out [kScoreRows, width] <- p K, p = f ∘ (dO Vᵀ - rho), in one pass with running row statistics; 0 for a row that
  // sees no key. `scratch`: score_scratch(width) numbers.
  void (*gradient_rows)(const ScoreRows<T>& rows, T* out, T* scratch);
  // Largest |score| of queries and keys that they see; 0 where they see none.
  double (*largest)(const ScoreTile<T>& tile);
};

struct ScoreLevel {
  ByType<ScoreFunctions> scores;

  static const ScoreLevel generic, avx2, avx512, avx512bf16;
};

template <class T>
const ScoreFunctions<T>& scores() {
  return at_level<ScoreLevel>().scores.of<T>();
}

// c [rows, cols] <- a [rows, depth] b [depth, cols], or c += that. Rows of b and c are dense, `step` numbers apart.
template <class T>
struct DirectProduct {
  T* c;
  const T *a, *b;
  int64_t c_step, a_row, a_col, b_step;
  int64_t rows, cols, depth;
  bool add;
};

template <class T>
struct ProductFunctions {
  // Each sum runs over the depth in order, from zero or from c on.
  void (*multiply)(const DirectProduct<T>& product);
};

struct ProductLevel {
  ByType<ProductFunctions> products;

  static const ProductLevel generic, avx2, avx512, avx512bf16;
};

template <class T>
const ProductFunctions<T>& products() {
  return at_level<ProductLevel>().products.of<T>();
}

inline int64_t score_scratch(int64_t width) { return kScoreRows * (2 * kScoreCols + 2 * width); }

}  // namespace lowrank::chain_lr
