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

  explicit Packed(const Head<T>& head)
      : rows(round_up(head.queries, kScoreRows)),
        keys(round_up(head.keys, kKeyPad)),
        width(round_up(head.depth, kWidthPad)),
        queries(rows, head.depth),
        dout(rows, head.value_depth),
        keys_t(head.depth, keys),
        values_t(head.value_depth, keys),
        by_row(keys, width),
        bias(keys) {
    put(queries, view_of(head.effective), false);
    put(keys_t, view_of(head.centered), true);
    std::copy(head.bias.data(), head.bias.data() + head.keys, bias.data());
    std::fill(bias.data() + head.keys, bias.data() + keys, -std::numeric_limits<T>::infinity());
    put(dout, head.dout, false);
    put(values_t, head.values, true);
    put(by_row, view_of(head.centered), false);
  }

  ScoreRows<T> at(int64_t row, bool causal) const {
    return {queries.row(row), dout.row(row), keys_t.data(), values_t.data(), by_row.data(), bias.data(),
            queries.cols(),   dout.cols(),   keys,          width,           row,           causal};
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
  const Packed<T> packed(head);
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

}  // namespace

void attention_exact_cpu(const AttentionGradient& out, const Attention& problem) {
  with_work_type(problem.queries.dtype, [&](auto tag) {
    add_heads(out, problem, [&](int64_t i) { return exact_head<decltype(tag)>(problem, i); });
  });
}

}  // namespace lowrank::chain_lr
