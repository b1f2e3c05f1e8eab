// The chained gradient of an attention adapter: exp by features, every product thin.
#include "chain_lr/features.h"
#include "chain_lr/product.h"

namespace lowrank::chain_lr {
namespace {

constexpr int64_t kProductNumbers = int64_t(1) << 18;  // of row-wise products at a time: they stay in a cache
constexpr int64_t kFewestRows = 128, kMostRows = 256;
constexpr int64_t kParts = 8;          // that sum on their own at a time, unless their sums are too large
constexpr int64_t kSumNumbers = 4096;  // of a state, that one task adds up
constexpr int64_t kLargestState = int64_t(1) << 20;

// Which entries of a matrix are not zero: all, or those of a triangle with its diagonal.
enum class Triangle : uint8_t { kFull, kLower, kUpper };

// A matrix [n, n'] given as (features featuresᵀ') ∘ (factor factorᵀ'): one side of it.
template <class T>
struct Side {
  FeatureRows<T>& features;
  MatrixBuffer<T>& factor;
};

// out [n, w] <- ((left.features right.featuresᵀ) ∘ (left.factor right.factorᵀ), as far as the triangle goes) m. Source:
// the row-wise Khatri-Rao, or face-splitting, product (Slyusar 1997), contracted from the right so that its rows are
// never all held.
template <class T>
class HadamardProduct {
 public:
  HadamardProduct(const Side<T>& left, const Side<T>& right, MatrixBuffer<T>& m, int64_t degree, MatrixBuffer<T>& out)
      : left_(left),
        right_(right),
        m_(m),
        out_(out),
        degree_(degree),
        width_(left.factor.cols() * m.cols()),
        parts_(left.features.cols() * width_ <= kLargestState ? kParts : 1),
        rows_(std::clamp(kProductNumbers / std::max<int64_t>(width_, 1), kFewestRows, kMostRows)) {}

  void run(Triangle triangle) {
    if (triangle == Triangle::kFull) return all();
    scan(triangle);
  }

 private:
  // Few parallel regions, each task with a state of its own; where states are large there is one, and the products
  // inside share the threads.
  void all() {
    const int64_t n = left_.features.rows(), m = right_.features.rows();
    const int64_t blocks = ceil_div(m, rows_), parts = std::clamp<int64_t>(blocks, 1, parts_);
    std::vector<std::optional<MatrixBuffer<T>>> states(static_cast<size_t>(parts));
    parallel_for(parts, [&](int64_t p) {
      Scratch buffer(*this, rows_);
      MatrixBuffer<T>& state = states[size_t(p)].emplace(no_state());
      for (int64_t b = blocks * p / parts; b < blocks * (p + 1) / parts; ++b) {
        gather(b * rows_, std::min(rows_, m - b * rows_), state, buffer);
      }
    });
    MatrixBuffer<T>& sum = *states[0];
    for (int64_t p = 1; p < parts; ++p) vectors<T>().axpy(sum.data(), T(1), states[size_t(p)]->data(), sum.size());
    parallel_chunks(n, rows_, [&](int64_t begin, int64_t end) {
      Scratch buffer(*this, rows_);
      spread(begin, end - begin, sum, buffer);
    });
  }

  // A prefix sum over blocks of rows, a few at a time: what each adds to the state; the sums of what came before each;
  // what its rows draw from that sum and from their own block.
  void scan(Triangle triangle) {
    const int64_t n = left_.features.rows(), blocks = ceil_div(n, kFewestRows);
    MatrixBuffer<T> sum = no_state();
    std::vector<MatrixBuffer<T>> states;
    for (int64_t p = 0; p < std::min(parts_, blocks); ++p) states.push_back(no_state());
    for (int64_t first = 0; first < blocks; first += parts_) {
      const int64_t count = std::min(parts_, blocks - first);
      const auto begin = [&](int64_t p) {
        return (triangle == Triangle::kLower ? first + p : blocks - 1 - first - p) * kFewestRows;
      };
      const auto size = [&](int64_t p) { return std::min(kFewestRows, n - begin(p)); };
      parallel_for(count, [&](int64_t p) {
        MatrixBuffer<T>& state = states[size_t(p)];
        std::fill(state.data(), state.data() + state.size(), T(0));
        Scratch buffer(*this, kFewestRows);
        gather(begin(p), size(p), state, buffer);
      });
      sum_before(states, count, sum);
      parallel_for(count, [&](int64_t p) {
        Scratch buffer(*this, kFewestRows);
        spread(begin(p), size(p), states[size_t(p)], buffer);
        diagonal(begin(p), size(p), triangle);
      });
    }
  }

  // states[p] <- sum + the states before it, for the first `count`; sum += all of these.
  static void sum_before(std::vector<MatrixBuffer<T>>& states, int64_t count, MatrixBuffer<T>& sum) {
    parallel_chunks(sum.size(), kSumNumbers, [&](int64_t begin, int64_t end) {
      T* const total = sum.data();
      for (int64_t p = 0; p < count; ++p) {
        T* const state = states[size_t(p)].data();
        for (int64_t e = begin; e < end; ++e) {
          const T own = state[e];
          state[e] = total[e];
          total[e] += own;
        }
      }
    });
  }

  // What a task holds for a block of rows.
  struct Scratch {
    MatrixBuffer<T> products, features;

    Scratch(const HadamardProduct& of, int64_t rows)
        : products(rows, of.width_), features(of.left_.features.are_monomials() ? rows : 0, of.left_.features.cols()) {}
  };

  MatrixBuffer<T> no_state() const {
    MatrixBuffer<T> state(left_.features.cols(), width_);
    std::fill(state.data(), state.data() + state.size(), T(0));
    return state;
  }

  // state += featuresᵀ (factor ⊙ m) of rows i .. i + count of the right-hand side.
  void gather(int64_t i, int64_t count, MatrixBuffer<T>& state, Scratch& buffer) const {
    const int64_t w = m_.cols(), c = right_.factor.cols();
    for (int64_t k = 0; k < count; ++k) {
      const T *const factor = right_.factor.row(i + k), *const m = m_.row(i + k);
      T* const product = buffer.products.row(k);
      for (int64_t j = 0; j < c; ++j) {
        for (int64_t x = 0; x < w; ++x) product[j * w + x] = factor[j] * m[x];
      }
    }
    const Matrix features = right_.features.block(i, count, buffer.features);
    gemm(state.view(), features.transposed(), buffer.products.view().block(0, 0, count, width_), {.beta = 1.0});
  }

  // out <- sum over c of factor[c] (features state)[c] for rows i .. i + count of the left-hand side.
  void spread(int64_t i, int64_t count, MatrixBuffer<T>& state, Scratch& buffer) const {
    const int64_t w = m_.cols(), c = left_.factor.cols();
    const Matrix features = left_.features.block(i, count, buffer.features);
    gemm(buffer.products.view().block(0, 0, count, width_), features, state.view());
    for (int64_t k = 0; k < count; ++k) {
      const T *const factor = left_.factor.row(i + k), *const product = buffer.products.row(k);
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
    const bool by_series = left_.features.are_monomials();
    MatrixBuffer<T> none(0, 0);
    if (by_series) {
      of_block(i, left_.features.arguments(), right_.features.arguments(), kernel);
    } else {
      gemm(kernel.view(), left_.features.block(i, count, none), right_.features.block(i, count, none).transposed());
    }
    of_block(i, left_.factor, right_.factor, factor);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t begin = triangle == Triangle::kLower ? 0 : k, end = triangle == Triangle::kLower ? k + 1 : count;
      T *const row = kernel.row(k), *const by = factor.row(k);
      std::fill(row, row + begin, T(0));
      std::fill(row + end, row + count, T(0));
      if (by_series) exponentiate(row + begin, end - begin);
      for (int64_t l = begin; l < end; ++l) row[l] *= by[l];
    }
    multiply<T>(out_.view().block(i, 0, count, out_.cols()), kernel.view(), m_.view().block(i, 0, count, m_.cols()),
                true);
  }

  // By a degree that the compiler knows, where it is the usual one: then it takes several numbers at a time.
  void exponentiate(T* x, int64_t count) const {
    if (degree_ == 2) {
      for (int64_t i = 0; i < count; ++i) x[i] = taylor_exp(x[i], 2);
    } else {
      for (int64_t i = 0; i < count; ++i) x[i] = taylor_exp(x[i], degree_);
    }
  }

  // block <- the product of rows i .. of two sides.
  static void of_block(int64_t i, MatrixBuffer<T>& left, MatrixBuffer<T>& right, MatrixBuffer<T>& block) {
    const int64_t count = block.rows();
    MatrixBuffer<T> turned(right.cols(), count);
    copy(turned.view(), right.view().block(i, 0, count, right.cols()).transposed());
    multiply<T>(block.view(), left.view().block(i, 0, count, left.cols()), turned.view());
  }

  Side<T> left_, right_;
  MatrixBuffer<T>&m_, &out_;
  int64_t degree_, width_, parts_, rows_;
};

template <class T>
MatrixBuffer<T> hadamard_product(const Side<T>& left, const Side<T>& right, MatrixBuffer<T>& m, int64_t degree,
                                 Triangle triangle) {
  MatrixBuffer<T> out(left.features.rows(), m.cols());
  HadamardProduct<T>(left, right, m, degree, out).run(triangle);
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
  const Monomials<T> monomials(features.left ? 0 : head.depth, features.left ? 0 : features.degree);
  FeatureRows<T> of_rows(features.left, index, monomials, head.effective);
  FeatureRows<T> of_columns(features.right, index, monomials, head.centered);
  const Matrix no_rows = row_major(static_cast<T*>(nullptr), head.queries, 0);
  const Matrix no_keys = row_major(static_cast<T*>(nullptr), head.keys, 0);
  MatrixBuffer<T> one_row = with_ones<T>(no_rows), one_key = with_ones<T>(no_keys);
  MatrixBuffer<T> values = with_ones<T>(head.values);
  for (int64_t l = 0; l < head.keys; ++l) {
    if (!head.sees(l)) std::fill(values.row(l), values.row(l) + values.cols(), T(0));
  }
  const Triangle before = problem.causal ? Triangle::kLower : Triangle::kFull;
  const Triangle after = problem.causal ? Triangle::kUpper : Triangle::kFull;
  const int64_t degree = features.degree;
  MatrixBuffer<T> sums = hadamard_product<T>({of_rows, one_row}, {of_columns, one_key}, values, degree, before);
  MatrixBuffer<T> factor = row_factor(head, sums);
  MatrixBuffer<T> low_keys(head.keys, head.rank);
  gemm(low_keys.view(), head.centered.view(), problem.a.transposed());

  const Side<T> left{of_rows, factor}, right{of_columns, values};
  MatrixBuffer<T> of_keys = hadamard_product<T>(left, right, low_keys, degree, before);
  MatrixBuffer<T> of_queries = hadamard_product<T>(right, left, head.low_queries, degree, after);
  HeadGradient out{MatrixBuffer<double>(head.rank, head.depth), MatrixBuffer<double>(problem.b.rows, head.rank)};
  gemm(out.db.view(), head.raw_queries.transposed(), of_keys.view(), {.alpha = problem.scale});
  gemm(out.da.view(), of_queries.view().transposed(), head.centered.view(), {.alpha = problem.scale});
  return out;
}

}  // namespace

void attention_chained_cpu(const AttentionGradient& out, const Attention& problem, const Features& features) {
  with_work_type(problem.queries.dtype, [&](auto tag) {
    add_heads(out, problem, [&](int64_t i) { return chained_head<decltype(tag)>(problem, features, i); });
  });
}

}  // namespace lowrank::chain_lr
