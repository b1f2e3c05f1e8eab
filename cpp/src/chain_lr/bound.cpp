// How large the scores of a head can be, without a look at all of them. No score is larger than the product of the
// norms of its query and its key (Cauchy-Schwarz). Where the largest norms say too much, queries and keys are sorted
// by their norms and multiplied block by block, largest products of norms first, until those that are left cannot
// matter: the pruning of exact maximum inner product search (Teflioudi, Gemulla, Mykytiuk, "LEMP: Fast retrieval of
// large entries in a matrix product", SIGMOD 2015), for all queries at once.
#include <numeric>

#include "chain_lr/head.h"

namespace lowrank::chain_lr {
namespace {

constexpr double kStep = 0.9;         // by which the largest product of norms not yet looked at shrinks in a round
constexpr int64_t kTilesForFree = 1;  // for each block of queries, to sharpen a bound that would do: linear in L
constexpr int kBisections = 60;       // as many bits as a float64 has, and some

struct Row {
  double length;
  int64_t index;
};

// Rows by their length, longest first.
class ByLength {
 public:
  template <class T, class Wanted>
  ByLength(const MatrixBuffer<T>& rows, const Wanted& wanted) {
    for (int64_t i = 0; i < rows.rows(); ++i) {
      if (wanted(i)) rows_.push_back({std::sqrt(vectors<T>().dot(rows.row(i), rows.row(i), rows.cols())), i});
    }
    std::sort(rows_.begin(), rows_.end(), [](const Row& a, const Row& b) {
      return a.length != b.length ? a.length > b.length : a.index < b.index;
    });
  }

  int64_t count() const { return int64_t(rows_.size()); }
  int64_t index(int64_t i) const { return rows_[size_t(i)].index; }
  double length(int64_t i) const { return rows_[size_t(i)].length; }

 private:
  std::vector<Row> rows_;
};

template <class T>
class ScoreSearch {
 public:
  ScoreSearch(const Head<T>& head, bool causal)
      : causal_(causal),
        head_(head),
        by_query_(head.effective, [](int64_t) { return true; }),
        by_key_(head.centered, [&](int64_t l) { return head.sees(l); }),
        blocks_(ceil_div(by_query_.count(), kScoreRows)),
        tiles_(ceil_div(by_key_.count(), kScoreCols)),
        done_(size_t(blocks_), 0) {}

  // A bound of all |scores| that is at most `enough`, or, where there is a larger score, one that is.
  double bound(double enough) {
    if (blocks_ == 0 || tiles_ == 0) return 0.0;
    double left = norms(0, 0), found = 0.0;
    const double rounding = left * double(head_.depth + 2) * double(std::numeric_limits<T>::epsilon());
    lay_out();
    while (found < left && found <= enough) {
      const bool needed = left > enough;
      if (!look_above(std::max(needed ? enough : found, kStep * left), needed, found)) break;
      left = largest_left();
    }
    return std::max(found + rounding, found > enough ? 0.0 : left);
  }

 private:
  // Sorted rows, padded; keys by columns. A query sees a key whose place is not beyond its own.
  void lay_out() {
    const int64_t rows = blocks_ * kScoreRows, keys = round_up(by_key_.count(), kKeyPad), depth = head_.depth;
    queries_.emplace(rows, depth);
    keys_t_.emplace(depth, keys);
    query_places_.assign(size_t(rows), T(0));
    key_places_.assign(size_t(keys), std::numeric_limits<T>::infinity());
    std::fill(queries_->data(), queries_->data() + queries_->size(), T(0));
    std::fill(keys_t_->data(), keys_t_->data() + keys_t_->size(), T(0));
    for (int64_t i = 0; i < by_query_.count(); ++i) {
      const int64_t row = by_query_.index(i);
      std::copy(head_.effective.row(row), head_.effective.row(row) + depth, queries_->row(i));
      if (causal_) query_places_[size_t(i)] = T(row);
    }
    for (int64_t l = 0; l < by_key_.count(); ++l) {
      const int64_t key = by_key_.index(l);
      for (int64_t p = 0; p < depth; ++p) keys_t_->at(p, l) = head_.centered.row(key)[p];
      key_places_[size_t(l)] = causal_ ? T(key) : T(0);
    }
  }

  // No score of the tile is larger.
  double norms(int64_t block, int64_t tile) const {
    return by_query_.length(block * kScoreRows) * by_key_.length(tile * kScoreCols);
  }

  double largest_left() const {
    double largest = 0.0;
    for (int64_t i = 0; i < blocks_; ++i) {
      if (done_[size_t(i)] < tiles_) largest = std::max(largest, norms(i, done_[size_t(i)]));
    }
    return largest;
  }

  // Looks at the tiles whose norms' product is above `aim`: `found` <- the largest score so far. False, and nothing was
  // looked at, where it is not needed and would cost more than what is free.
  bool look_above(double aim, bool needed, double& found) {
    std::vector<int64_t> until(done_);
    int64_t count = 0;
    for (int64_t i = 0; i < blocks_ && norms(i, 0) > aim; ++i) {
      int64_t low = done_[size_t(i)], high = tiles_;  // of the tiles, whose norms fall, the first that is not above
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (norms(i, middle) > aim) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      until[size_t(i)] = low;
      count += low - done_[size_t(i)];
    }
    if (!needed && looked_at_ + count > kTilesForFree * blocks_) return false;
    looked_at_ += count;
    Buffer<double> largest(blocks_);
    parallel_for(blocks_, [&](int64_t i) {
      largest[i] = found;
      for (int64_t j = done_[size_t(i)]; j < until[size_t(i)]; ++j) largest[i] = std::max(largest[i], largest_of(i, j));
    });
    done_ = std::move(until);
    found = *std::max_element(largest.data(), largest.data() + blocks_);
    return true;
  }

  double largest_of(int64_t block, int64_t tile) const {
    const int64_t begin = tile * kScoreCols, keys = keys_t_->cols();
    const ScoreTile<T> at{queries_->row(block * kScoreRows),
                          keys_t_->data() + begin,
                          query_places_.data() + block * kScoreRows,
                          key_places_.data() + begin,
                          head_.depth,
                          keys,
                          std::min(kScoreCols, keys - begin)};
    return scores<T>().largest(at);
  }

  const bool causal_;
  const Head<T>& head_;
  const ByLength by_query_, by_key_;
  const int64_t blocks_, tiles_;  // of kScoreRows queries, of kScoreCols keys
  std::vector<int64_t> done_;     // tiles of each block that were looked at: the first ones
  std::optional<MatrixBuffer<T>> queries_, keys_t_;
  std::vector<T> query_places_, key_places_;
  int64_t looked_at_ = 0;
};

template <class T>
double score_bound(const Attention& problem, int64_t index, double enough) {
  const Head<T> head(problem, index);
  check_head(head);
  return ScoreSearch<T>(head, problem.causal).bound(enough);
}

}  // namespace

double taylor_score(double error, int64_t degree) {
  double low = 0.0, high = 1.0;
  while (taylor_error(high, degree) <= error) high *= 2.0;
  for (int i = 0; i < kBisections; ++i) {
    const double middle = (low + high) / 2.0;
    (taylor_error(middle, degree) <= error ? low : high) = middle;
  }
  return low;
}

double score_bound_cpu(const Attention& problem, double enough) {
  std::vector<double> bounds(static_cast<size_t>(problem.queries.batch()), 0.0);
  with_work_type(problem.queries.dtype, [&](auto tag) {
    for_each_head(problem, 0, int64_t(bounds.size()),
                  [&](int64_t i) { bounds[size_t(i)] = score_bound<decltype(tag)>(problem, i, enough); });
  });
  return bounds.empty() ? 0.0 : *std::max_element(bounds.begin(), bounds.end());
}

}  // namespace lowrank::chain_lr
