// The chained gradient of an attention adapter: exp by features, every product thin.
#include "chain_lr/features.h"

namespace lowrank::chain_lr {
namespace {

constexpr int64_t kProductNumbers = int64_t(1) << 18;  // of row-wise products at a time: they stay in a cache
constexpr int64_t kFewestRows = 64, kMostRows = 512;
constexpr int64_t kParts = 8;  // that sum on their own, unless their sums are too large
constexpr int64_t kLargestState = int64_t(1) << 20;

// Which entries of a matrix are not zero: all, or those of a triangle with its diagonal.
enum class Triangle : uint8_t { kFull, kLower, kUpper };

// A matrix [n, n'] given as (features featuresᵀ') ∘ (factor factorᵀ'): one side of it.
template <class T>
struct Side {
  MatrixBuffer<T>& features;
  MatrixBuffer<T>& factor;
};

// out [n, w] <- ((left.features right.featuresᵀ) ∘ (left.factor right.factorᵀ), as far as the triangle goes) m. Source:
// the row-wise Khatri-Rao, or face-splitting, product (Slyusar 1997), contracted from the right so that its rows are
// never all held.
template <class T>
class HadamardProduct {
 public:
  HadamardProduct(const Side<T>& left, const Side<T>& right, MatrixBuffer<T>& m, MatrixBuffer<T>& out)
      : left_(left),
        right_(right),
        m_(m),
        out_(out),
        width_(left.factor.cols() * m.cols()),
        rows_(std::clamp(kProductNumbers / std::max<int64_t>(width_, 1), kFewestRows, kMostRows)) {}

  void run(Triangle triangle) {
    if (triangle == Triangle::kFull) return all();
    MatrixBuffer<T> state = no_state(), buffer(kFewestRows, width_);
    const int64_t n = left_.features.rows(), blocks = (n + kFewestRows - 1) / kFewestRows;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t i = (triangle == Triangle::kLower ? b : blocks - 1 - b) * kFewestRows;
      const int64_t count = std::min(kFewestRows, n - i);
      spread(i, count, state, buffer);
      diagonal(i, count, triangle);
      gather(i, count, state, buffer);
    }
  }

 private:
  // Few parallel regions, each task with a state of its own; where states are large there is one, and the products
  // inside share the threads.
  void all() {
    const int64_t n = left_.features.rows(), m = right_.features.rows();
    const int64_t blocks = (m + rows_ - 1) / rows_;
    const int64_t parts = left_.features.cols() * width_ <= kLargestState ? std::clamp<int64_t>(blocks, 1, kParts) : 1;
    std::vector<std::optional<MatrixBuffer<T>>> states(static_cast<size_t>(parts));
    parallel_for(parts, [&](int64_t p) {
      MatrixBuffer<T> buffer(rows_, width_);
      MatrixBuffer<T>& state = states[size_t(p)].emplace(no_state());
      for (int64_t b = blocks * p / parts; b < blocks * (p + 1) / parts; ++b) {
        gather(b * rows_, std::min(rows_, m - b * rows_), state, buffer);
      }
    });
    MatrixBuffer<T>& sum = *states[0];
    for (int64_t p = 1; p < parts; ++p) vectors<T>().axpy(sum.data(), T(1), states[size_t(p)]->data(), sum.size());
    parallel_chunks(n, rows_, [&](int64_t begin, int64_t end) {
      MatrixBuffer<T> buffer(rows_, width_);
      spread(begin, end - begin, sum, buffer);
    });
  }

  MatrixBuffer<T> no_state() const {
    MatrixBuffer<T> state(left_.features.cols(), width_);
    std::fill(state.data(), state.data() + state.size(), T(0));
    return state;
  }

  // state += featuresᵀ (factor ⊙ m) of rows i .. i + count of the right-hand side.
  void gather(int64_t i, int64_t count, MatrixBuffer<T>& state, MatrixBuffer<T>& buffer) const {
    const int64_t w = m_.cols(), c = right_.factor.cols();
    for (int64_t k = 0; k < count; ++k) {
      const T *const factor = right_.factor.row(i + k), *const m = m_.row(i + k);
      T* const product = buffer.row(k);
      for (int64_t j = 0; j < c; ++j) {
        for (int64_t x = 0; x < w; ++x) product[j * w + x] = factor[j] * m[x];
      }
    }
    const Matrix features = right_.features.view().block(i, 0, count, right_.features.cols());
    gemm(state.view(), features.transposed(), buffer.view().block(0, 0, count, width_), {.beta = 1.0});
  }

  // out <- sum over c of factor[c] (features state)[c] for rows i .. i + count of the left-hand side.
  void spread(int64_t i, int64_t count, MatrixBuffer<T>& state, MatrixBuffer<T>& buffer) const {
    const int64_t w = m_.cols(), c = left_.factor.cols();
    const Matrix features = left_.features.view().block(i, 0, count, left_.features.cols());
    gemm(buffer.view().block(0, 0, count, width_), features, state.view());
    for (int64_t k = 0; k < count; ++k) {
      const T *const factor = left_.factor.row(i + k), *const product = buffer.row(k);
      T* const out = out_.row(i + k);
      std::fill(out, out + w, T(0));
      for (int64_t j = 0; j < c; ++j) {
        for (int64_t x = 0; x < w; ++x) out[x] += factor[j] * product[j * w + x];
      }
    }
  }

  // out += the part of the block on the diagonal within the triangle, which is formed: kFewestRows rows and columns.
  void diagonal(int64_t i, int64_t count, Triangle triangle) {
    MatrixBuffer<T> kernel(count, count), factor(count, count);
    const auto rows = [&](MatrixBuffer<T>& x) { return x.view().block(i, 0, count, x.cols()); };
    gemm(kernel.view(), rows(left_.features), rows(right_.features).transposed());
    gemm(factor.view(), rows(left_.factor), rows(right_.factor).transposed());
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t l = 0; l < count; ++l) {
        const bool within = triangle == Triangle::kLower ? l <= k : l >= k;
        kernel.at(k, l) = within ? kernel.at(k, l) * factor.at(k, l) : T(0);
      }
    }
    gemm(rows(out_), kernel.view(), rows(m_), {.beta = 1.0});
  }

  Side<T> left_, right_;
  MatrixBuffer<T>&m_, &out_;
  int64_t width_, rows_;
};

template <class T>
MatrixBuffer<T> hadamard_product(const Side<T>& left, const Side<T>& right, MatrixBuffer<T>& m, Triangle triangle) {
  MatrixBuffer<T> out(left.features.rows(), m.cols());
  HadamardProduct<T>(left, right, m, out).run(triangle);
  return out;
}

// ---- the chain ---------------------------------------------------------------------------------------------------

// [x, 1]
template <class T>
MatrixBuffer<T> with_ones(const Matrix& x) {
  MatrixBuffer<T> out(x.rows, x.cols + 1);
  copy(out.view().block(0, 0, x.rows, x.cols), x);
  for (int64_t i = 0; i < x.rows; ++i) out.at(i, x.cols) = T(1);
  return out;
}

// Row i: [dO, -rho] / sum of the row, with rho = dO · O; zeros where the row sees nothing.
template <class T>
MatrixBuffer<T> row_factor(const Head<T>& head, const MatrixBuffer<T>& sums) {
  const int64_t c = head.value_depth;
  MatrixBuffer<T> factor = with_ones<T>(head.dout);
  for (int64_t i = 0; i < factor.rows(); ++i) {
    const T total = sums.row(i)[c];
    LRC_CHECK(total >= T(0), "attention_lora_grad: `features` must give rows with a positive sum, got " +
                                 std::to_string(double(total)) + "; use an even degree or positive features");
    const T inverse = total > T(0) ? T(1) / total : T(0);
    T rho = T(0);
    for (int64_t j = 0; j < c; ++j) rho += factor.at(i, j) * (sums.row(i)[j] * inverse);
    for (int64_t j = 0; j < c; ++j) factor.at(i, j) *= inverse;
    factor.at(i, c) = -rho * inverse;
  }
  return factor;
}

template <class T>
HeadGradient chained_head(const Attention& problem, const Features& features, int64_t index) {
  Head<T> head(problem, index);
  check_head(head);
  Pair<T> pair = features_of(features, head, index);
  const Matrix no_rows = row_major(static_cast<T*>(nullptr), head.queries, 0);
  const Matrix no_keys = row_major(static_cast<T*>(nullptr), head.keys, 0);
  MatrixBuffer<T> one_row = with_ones<T>(no_rows), one_key = with_ones<T>(no_keys);
  MatrixBuffer<T> values = with_ones<T>(head.values);
  const Triangle before = problem.causal ? Triangle::kLower : Triangle::kFull;
  const Triangle after = problem.causal ? Triangle::kUpper : Triangle::kFull;
  MatrixBuffer<T> sums = hadamard_product<T>({pair.left, one_row}, {pair.right, one_key}, values, before);
  MatrixBuffer<T> factor = row_factor(head, sums);
  MatrixBuffer<T> low_keys(head.keys, head.rank);
  gemm(low_keys.view(), head.centered.view(), problem.a.transposed());

  const Side<T> left{pair.left, factor}, right{pair.right, values};
  std::optional<MatrixBuffer<T>> of_keys, of_queries;
  const auto run = [&](int64_t i) {
    if (i == 0) of_keys.emplace(hadamard_product<T>(left, right, low_keys, before));
    if (i == 1) of_queries.emplace(hadamard_product<T>(right, left, head.low_queries, after));
  };
  if (problem.causal) {
    parallel_for(2, run);  // each goes from block to block and has no other use for a second thread
  } else {
    for (const int64_t i : {0, 1}) run(i);
  }
  HeadGradient out{MatrixBuffer<double>(head.rank, head.depth), MatrixBuffer<double>(problem.b.rows, head.rank)};
  gemm(out.db.view(), head.raw_queries.transposed(), of_keys->view(), {.alpha = problem.scale});
  gemm(out.da.view(), of_queries->view().transposed(), head.centered.view(), {.alpha = problem.scale});
  return out;
}

}  // namespace

void attention_chained_cpu(const AttentionGradient& out, const Attention& problem, const Features& features) {
  with_work_type(problem.queries.dtype, [&](auto tag) {
    add_heads(out, problem, [&](int64_t i) { return chained_head<decltype(tag)>(problem, features, i); });
  });
}

}  // namespace lowrank::chain_lr
