// head: one head of an attention problem, laid out for both of its gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "chain_lr/level.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/chain_lr.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/integers.h"
#include "lowrank_core/parallel.h"

namespace lowrank::chain_lr {

constexpr int64_t kWidthPad = 16;                     // entries of a row of keys that whole vectors cover
constexpr int64_t kHeadsAtOnce = 64;                  // whose partial gradients are held before they are added
constexpr int64_t kOneThreadEachScores = 1024 * 512;  // heads of up to so many scores get one thread each

// What a head is computed from: queries times the effective weight, keys less the mean of those that are seen (softmax
// does not notice, and what is summed gets smaller), the keys times Aᵀ and the queries times B, in the working type.
template <class T>
struct Head {
  int64_t queries, keys, depth, value_depth, rank;
  MatrixBuffer<T> effective, centered;  // [L, d_k], [M, d_k]; unseen keys are zero
  MatrixBuffer<T> low_queries;          // [L, r]
  Buffer<T> bias;                       // [M], 0 or -infinity
  Matrix raw_queries, values, dout;

  Head(const Attention& problem, int64_t index)
      : queries(problem.queries.matrix(index).rows),
        keys(problem.keys.matrix(index).rows),
        depth(problem.weight.cols),
        value_depth(problem.values.matrix(index).cols),
        rank(problem.a.rows),
        effective(queries, depth),
        centered(keys, depth),
        low_queries(queries, rank),
        bias(keys),
        raw_queries(problem.queries.matrix(index)),
        values(problem.values.matrix(index)),
        dout(problem.dout.matrix(index)) {
    gemm(low_queries.view(), raw_queries, problem.b);
    gemm(effective.view(), raw_queries, problem.weight);
    gemm(effective.view(), low_queries.view(), problem.a, {.alpha = problem.scale, .beta = 1.0});
    copy(centered.view(), problem.keys.matrix(index));
    read_mask(problem, index);
    center();
  }

  bool sees(int64_t key) const { return bias[key] == T(0); }

 private:
  void read_mask(const Attention& problem, int64_t index) {
    std::fill(bias.data(), bias.data() + keys, T(0));
    if (!problem.mask) return;
    View rows = *problem.mask;  // [..., M] as matrices [..., 1, M]
    rows.rank += 1;
    rows.shape[size_t(rows.rank - 1)] = rows.shape[size_t(rows.rank - 2)];
    rows.stride[size_t(rows.rank - 1)] = rows.stride[size_t(rows.rank - 2)];
    rows.shape[size_t(rows.rank - 2)] = 1;
    const Matrix line = rows.matrix(index);
    for (int64_t l = 0; l < keys; ++l) {
      if (line.as<uint8_t>()[l * line.col_stride] == 0) bias[l] = -std::numeric_limits<T>::infinity();
    }
  }

  void center() {
    std::vector<double> mean(size_t(depth), 0.0);
    int64_t seen = 0;
    for (int64_t l = 0; l < keys; ++l) {
      if (!sees(l)) {
        std::fill(centered.row(l), centered.row(l) + depth, T(0));
        continue;
      }
      ++seen;
      const T* const key = centered.row(l);
      for (int64_t c = 0; c < depth; ++c) mean[size_t(c)] += double(key[c]);
    }
    std::vector<T> shift(size_t(depth), T(0));
    for (int64_t c = 0; c < depth; ++c) shift[size_t(c)] = T(mean[size_t(c)] / double(std::max<int64_t>(seen, 1)));
    for (int64_t l = 0; l < keys; ++l) {
      if (sees(l)) vectors<T>().axpy(centered.row(l), T(-1), shift.data(), depth);
    }
  }
};

// Length of the longest row, in float64.
template <class T>
double longest_row(const MatrixBuffer<T>& x) {
  double longest = 0.0;
  for (int64_t i = 0; i < x.rows(); ++i) {
    const double square = vectors<T>().dot(x.row(i), x.row(i), x.cols());
    longest = std::isnan(square) || square > longest ? square : longest;
    if (std::isnan(longest)) break;
  }
  return std::sqrt(longest);
}

// Scores and what they are multiplied with stay finite: checked before, because a NaN score would weigh nothing.
template <class T>
void check_head(const Head<T>& head) {
  const double scores = longest_row(head.effective) * longest_row(head.centered);
  const double rest = largest_magnitude(head.values) + largest_magnitude(head.dout);
  if (!(scores <= double(std::numeric_limits<T>::max()) / 4) || !std::isfinite(rest)) throw NotFinite();
}

// da, db of one head from p K, [L, d_k] in its first columns: db = scale Qᵀ (p K Aᵀ), da = scale (Q B)ᵀ p K.
struct HeadGradient {
  MatrixBuffer<double> da, db;
};

// Calls body(index) for heads `begin` .. `end`; small ones get one thread each.
template <class Body>
void for_each_head(const Attention& problem, int64_t begin, int64_t end, const Body& body) {
  if (begin == end) return;
  if (problem.queries.matrix().rows * problem.keys.matrix().rows <= kOneThreadEachScores) {
    return parallel_for(end - begin, [&](int64_t i) { body(begin + i); });
  }
  for (int64_t i = begin; i < end; ++i) body(i);
}

// Calls one(index) for each head, giving its gradient, and adds them up in the order of the heads.
template <class One>
void add_heads(const AttentionGradient& out, const Attention& problem, const One& one) {
  const int64_t heads = problem.queries.batch();
  const MatrixBuffer<double> none(0, 0);
  const auto clear = [](const Matrix& m) {
    for (int64_t i = 0; i < m.rows; ++i) {
      for (int64_t j = 0; j < m.cols; ++j) m.as<double>()[i * m.row_stride + j * m.col_stride] = 0.0;
    }
  };
  const auto add = [](const Matrix& to, const MatrixBuffer<double>& from) {
    for (int64_t i = 0; i < to.rows; ++i) {
      for (int64_t j = 0; j < to.cols; ++j) to.as<double>()[i * to.row_stride + j * to.col_stride] += from.row(i)[j];
    }
  };
  clear(out.da);
  clear(out.db);
  if (heads == 0) return;
  for (int64_t begin = 0; begin < heads; begin += kHeadsAtOnce) {
    const int64_t count = std::min(kHeadsAtOnce, heads - begin);
    std::vector<std::optional<HeadGradient>> parts(static_cast<size_t>(count));
    for_each_head(problem, begin, begin + count, [&](int64_t i) { parts[size_t(i - begin)].emplace(one(i)); });
    for (const auto& part : parts) {
      add(out.da, part->da);
      add(out.db, part->db);
    }
  }
}

}  // namespace lowrank::chain_lr
