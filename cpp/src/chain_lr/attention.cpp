// The exact gradient of an attention adapter: tiles of scores, nothing of the size of all of them.
#include "chain_lr/head.h"

namespace lowrank::chain_lr {
namespace {

// The arrays of a head as the tiles read them: padded, keys and values also by columns.
template <class T>
struct Packed {
  int64_t rows, keys, width;
  MatrixBuffer<T> queries, dout, keys_t, values_t, by_row;
  Buffer<T> bias;

  Packed(const Head<T>& head, bool with_values)
      : rows(round_up(head.queries, kScoreRows)),
        keys(round_up(head.keys, kKeyPad)),
        width(round_up(head.depth, kWidthPad)),
        queries(rows, head.depth),
        dout(with_values ? rows : 0, head.value_depth),
        keys_t(head.depth, keys),
        values_t(with_values ? head.value_depth : 0, keys),
        by_row(with_values ? keys : 0, width),
        bias(keys) {
    put(queries, view_of(head.effective), false);
    put(keys_t, view_of(head.centered), true);
    std::copy(head.bias.data(), head.bias.data() + head.keys, bias.data());
    std::fill(bias.data() + head.keys, bias.data() + keys, -std::numeric_limits<T>::infinity());
    if (!with_values) return;
    put(dout, head.dout, false);
    put(values_t, head.values, true);
    put(by_row, view_of(head.centered), false);
  }

  ScoreRows<T> at(int64_t row, bool causal) const {
    return {queries.row(row),
            row < dout.rows() ? dout.row(row) : nullptr,
            keys_t.data(),
            values_t.data(),
            by_row.data(),
            bias.data(),
            queries.cols(),
            dout.cols(),
            keys,
            width,
            row,
            causal};
  }

 private:
  static Matrix view_of(const MatrixBuffer<T>& m) { return row_major(const_cast<T*>(m.data()), m.rows(), m.cols()); }

  static void put(MatrixBuffer<T>& to, const Matrix& from, bool transposed) {
    std::fill(to.data(), to.data() + to.size(), T(0));
    const Matrix part = to.view().block(0, 0, transposed ? from.cols : from.rows, transposed ? from.rows : from.cols);
    copy(part, transposed ? from.transposed() : from);
  }
};

template <class T>
HeadGradient exact_head(const Attention& problem, int64_t index) {
  Head<T> head(problem, index);
  check_head(head);
  const Packed<T> packed(head, true);
  MatrixBuffer<T> product(packed.rows, packed.width);
  parallel_for(packed.rows / kScoreRows, [&](int64_t block) {
    Buffer<T> scratch(score_scratch(packed.width));
    const ScoreRows<T> rows = packed.at(block * kScoreRows, problem.causal);
    scores<T>().gradient_rows(rows, product.row(block * kScoreRows), scratch.data());
  });
  const Matrix sums = product.view().block(0, 0, head.queries, head.depth);
  MatrixBuffer<T> low(head.queries, head.rank);
  gemm(low.view(), sums, problem.a.transposed());
  HeadGradient out{MatrixBuffer<double>(head.rank, head.depth), MatrixBuffer<double>(problem.b.rows, head.rank)};
  gemm(out.db.view(), head.raw_queries.transposed(), low.view(), {.alpha = problem.scale});
  gemm(out.da.view(), head.low_queries.view().transposed(), sums, {.alpha = problem.scale});
  return out;
}

template <class T>
double largest_score(const Attention& problem, int64_t index, bool exactly) {
  const Head<T> head(problem, index);
  check_head(head);
  if (!exactly) return longest_row(head.effective) * longest_row(head.centered);
  const Packed<T> packed(head, false);
  Buffer<double> largest(packed.rows / kScoreRows);
  parallel_for(largest.size(), [&](int64_t block) {
    Buffer<T> scratch(score_scratch(packed.width));
    const ScoreRows<T> rows = packed.at(block * kScoreRows, problem.causal);
    largest[block] = scores<T>().largest_rows(rows, scratch.data());
  });
  return largest.size() == 0 ? 0.0 : *std::max_element(largest.data(), largest.data() + largest.size());
}

}  // namespace

void attention_exact_cpu(const AttentionGradient& out, const Attention& problem) {
  with_work_type(problem.queries.dtype, [&](auto tag) {
    add_heads(out, problem, [&](int64_t i) { return exact_head<decltype(tag)>(problem, i); });
  });
}

double largest_score_cpu(const Attention& problem, bool exactly) {
  double largest = 0.0;
  with_work_type(problem.queries.dtype, [&](auto tag) {
    for (int64_t i = 0; i < problem.queries.batch(); ++i) {
      largest = std::max(largest, largest_score<decltype(tag)>(problem, i, exactly));
    }
  });
  return largest;
}

}  // namespace lowrank::chain_lr
