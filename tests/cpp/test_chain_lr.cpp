// Chains of thin products: the plan, the series, and tiles of scores against scalar loops.
#include "lowrank_core/chain_lr.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "chain_lr/level.h"
#include "check.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/philox.h"

namespace lowrank::chain_lr {
namespace {

constexpr uint32_t kStream = 99;  // of this test

// In [-1, 1).
double number(uint64_t element) { return 2.0 * double(philox::uniform(philox::bits(7, {element, kStream, 0}))) - 1.0; }

template <class T>
constexpr double kUnit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;

void thin_factors_come_first() {
  CHECK(plan_chain({{1000, 4, 1}, {4, 1000, 1}, {1000, 1, 1}})[0][2] == 0);
  CHECK(plan_chain({{1, 1000, 1}, {1000, 4, 1}, {4, 1000, 1}})[0][2] == 1);
  // Two plain factors beside a batched one are multiplied once, before it.
  CHECK(plan_chain({{8, 8, 1}, {8, 8, 1}, {8, 8, 100}})[0][2] == 1);
  CHECK(plan_chain({{8, 8, 100}, {8, 8, 1}, {8, 8, 1}})[0][2] == 0);
}

void the_series_is_cut_after_its_degree() {
  CHECK(taylor_exp(-3.0, 1) == -2.0 && taylor_exp(-3.0, 2) == 2.5);
  CHECK(taylor_row_error(0.0, 2) == 0.0);
  for (int64_t degree = 2; degree <= 8; degree += 2) {
    for (double b = 0.1; b < 2.0; b += 0.1) {
      CHECK(taylor_exp(-b, degree) > 0.0);
      CHECK(taylor_row_error(b, degree) < taylor_row_error(b + 0.1, degree));
      CHECK(taylor_row_error(b, degree + 2) < taylor_row_error(b, degree));
    }
  }
}

// ---- tiles -------------------------------------------------------------------------------------------------------

template <class T>
struct Tiles {
  int64_t depth, value_depth, keys, seen, width;
  std::vector<T> queries, dout, keys_t, values_t, by_row, bias;

  Tiles(int64_t d, int64_t c, int64_t m)
      : depth(d),
        value_depth(c),
        keys((m + kKeyPad - 1) / kKeyPad * kKeyPad),
        seen(m),
        width((d + 15) / 16 * 16),
        queries(size_t(kScoreRows * d)),
        dout(size_t(kScoreRows * c)),
        keys_t(size_t(d * keys)),
        values_t(size_t(c * keys)),
        by_row(size_t(keys * width)),
        bias(size_t(keys), -std::numeric_limits<T>::infinity()) {
    uint64_t next = 0;
    for (T& x : queries) x = T(number(next++));
    for (T& x : dout) x = T(number(next++));
    for (int64_t l = 0; l < m; ++l) {
      if (l % 5 != 3) bias[size_t(l)] = T(0);
      for (int64_t p = 0; p < d; ++p) {
        keys_t[size_t(p * keys + l)] = by_row[size_t(l * width + p)] = T(2.0 * number(next++));
      }
      for (int64_t p = 0; p < c; ++p) values_t[size_t(p * keys + l)] = T(number(next++));
    }
  }

  ScoreRows<T> rows(int64_t first_row, bool causal) const {
    return {queries.data(), dout.data(), keys_t.data(), values_t.data(), by_row.data(), bias.data(),
            depth,          value_depth, keys,          width,           first_row,     causal};
  }

  double score(int64_t i, int64_t l) const {
    double sum = 0.0;
    for (int64_t p = 0; p < depth; ++p) {
      sum += double(queries[size_t(i * depth + p)]) * double(keys_t[size_t(p * keys + l)]);
    }
    return sum;
  }
  double dp(int64_t i, int64_t l) const {
    double sum = 0.0;
    for (int64_t p = 0; p < value_depth; ++p) {
      sum += double(dout[size_t(i * value_depth + p)]) * double(values_t[size_t(p * keys + l)]);
    }
    return sum;
  }
  bool sees(int64_t i, int64_t l, int64_t first_row, bool causal) const {
    return l < seen && bias[size_t(l)] == T(0) && (!causal || l <= first_row + i);
  }
};

// Of the largest |score|; a query sees the keys whose place is not beyond its own.
template <class T>
double largest_by_tiles(const Tiles<T>& tiles, int64_t first_row, bool causal) {
  std::vector<T> query_places(size_t(kScoreRows), T(0)), key_places(size_t(tiles.keys), T(0));
  for (int64_t i = 0; i < kScoreRows && causal; ++i) query_places[size_t(i)] = T(first_row + i);
  for (int64_t l = 0; l < tiles.keys; ++l) {
    key_places[size_t(l)] =
        tiles.bias[size_t(l)] < T(0) ? std::numeric_limits<T>::infinity() : T(causal ? l : int64_t(0));
  }
  double largest = 0.0;
  for (int64_t l = 0; l < tiles.keys; l += kScoreCols) {
    const ScoreTile<T> tile{tiles.queries.data(),
                            tiles.keys_t.data() + l,
                            query_places.data(),
                            key_places.data() + l,
                            tiles.depth,
                            tiles.keys,
                            std::min(kScoreCols, tiles.keys - l)};
    largest = std::max(largest, scores<T>().largest(tile));
  }
  return largest;
}

void a_score_has_its_error() {
  for (int64_t degree = 2; degree <= 8; degree += 2) {
    const double score = taylor_score(0.5, degree);
    CHECK(taylor_error(score, degree) <= 0.5 && taylor_error(score * (1.0 + 1e-12), degree) > 0.5);
  }
}

template <class T>
void tiles_equal_scalar_loops(int64_t depth, int64_t value_depth, int64_t keys, int64_t first_row, bool causal) {
  const Tiles<T> tiles(depth, value_depth, keys);
  const ScoreRows<T> rows = tiles.rows(first_row, causal);
  std::vector<T> out(size_t(kScoreRows * tiles.width)), scratch(static_cast<size_t>(score_scratch(tiles.width)));
  scores<T>().gradient_rows(rows, out.data(), scratch.data());
  double largest = 0.0;
  // Scores below 2 depth in size, weights of a row that sum to 1, |dP| below value_depth, keys below 2.
  const double off = 2.0 * double(depth + 2) * 2.0 * double(depth) + double(keys) + 8.0;
  const double bound = kUnit<T> * (6.0 * off + 2.0 * double(value_depth + keys) + 8.0) * double(value_depth) * 2.0;
  for (int64_t i = 0; i < kScoreRows; ++i) {
    double sum = 0.0, rho = 0.0;
    for (int64_t l = 0; l < keys; ++l) {
      if (!tiles.sees(i, l, first_row, causal)) continue;
      const double weight = std::exp(tiles.score(i, l));
      largest = std::max(largest, std::abs(tiles.score(i, l)));
      sum += weight;
      rho += weight * tiles.dp(i, l);
    }
    for (int64_t c = 0; c < depth; ++c) {
      double exact = 0.0;
      for (int64_t l = 0; l < keys; ++l) {
        if (!tiles.sees(i, l, first_row, causal)) continue;
        const double p = std::exp(tiles.score(i, l)) / sum * (tiles.dp(i, l) - rho / sum);
        exact += p * double(tiles.by_row[size_t(l * tiles.width + c)]);
      }
      CHECK(std::abs(double(out[size_t(i * tiles.width + c)]) - exact) <= bound);
    }
  }
  const double found = largest_by_tiles(tiles, first_row, causal);
  CHECK(std::abs(found - largest) <= kUnit<T> * double(depth + 2) * 2.0 * double(depth));
}

void every_level_equals_scalar_loops() {
  const std::string before = name(isa());
  for (const std::string& level : isa_levels()) {
    set_isa(level);
    for (const bool causal : {false, true}) {
      tiles_equal_scalar_loops<float>(5, 3, 70, 16, causal);
      tiles_equal_scalar_loops<double>(5, 3, 70, 16, causal);
      tiles_equal_scalar_loops<float>(33, 17, kScoreCols + 40, kScoreCols, causal);
      tiles_equal_scalar_loops<double>(33, 17, kScoreCols + 40, kScoreCols, causal);
      tiles_equal_scalar_loops<float>(1, 1, 1, 0, causal);
      tiles_equal_scalar_loops<float>(2, 2, 4, 0, causal);
    }
  }
  set_isa(before);
}

}  // namespace
}  // namespace lowrank::chain_lr

int main() {
  lowrank::chain_lr::thin_factors_come_first();
  lowrank::chain_lr::the_series_is_cut_after_its_degree();
  lowrank::chain_lr::a_score_has_its_error();
  lowrank::chain_lr::every_level_equals_scalar_loops();
  return lowrank::testing::finish();
}
