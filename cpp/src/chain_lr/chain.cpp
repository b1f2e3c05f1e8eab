#include "lowrank_core/chain_lr.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "chain_lr/product.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/parallel.h"

namespace lowrank::chain_lr {
namespace {

constexpr double kOneThreadEach = double(1 << 22);  // multiply-adds up to which members of a batch run side by side
constexpr int64_t kStripRows = 512;                 // of a half-precision result that are summed in float32 at a time

// A chain whose factors i .. j are multiplied in the planned order.
template <class T>
class Chain {
 public:
  explicit Chain(const std::vector<View>& matrices) : matrices_(matrices) {
    for (const View& view : matrices) {
      const int64_t count = view.rank > 2 ? view.batch() : 1;
      factors_.push_back({view.shape[size_t(view.rank - 2)], view.shape[size_t(view.rank - 1)], count});
      batched_.push_back(view.rank > 2);
    }
    plan_ = plan_chain(factors_);
    if (matrices_.size() > 1) share(0, last());
  }

  // out <- the product for member `index` of the batch.
  void multiply(const Matrix& out, int64_t index) const {
    if (matrices_.size() == 1) return copy(out, single(0, index));
    into(out, 0, last(), index);
  }

  // Multiply-adds for one member.
  double work(size_t i, size_t j) const {
    if (i == j) return 0.0;
    const auto split = size_t(plan_[i][j]);
    return product_cost(double(factors_[i].rows), double(factors_[split].cols), double(factors_[j].cols)) +
           work(i, split) + work(split + 1, j);
  }
  size_t last() const { return matrices_.size() - 1; }

 private:
  using Held = std::unique_ptr<MatrixBuffer<T>>;
  struct Shared {
    size_t i, j;
    Held product;
  };

  bool is_batched(size_t i, size_t j) const {
    return std::any_of(batched_.begin() + int64_t(i), batched_.begin() + int64_t(j) + 1, [](bool b) { return b; });
  }
  Matrix single(size_t i, int64_t index) const { return matrices_[i].matrix(batched_[i] ? index : 0); }

  // Products of plain matrices, which all members of a batch have in common, are formed once.
  void share(size_t i, size_t j) {
    if (i == j) return;
    if (!is_batched(i, j)) {
      Held product = std::make_unique<MatrixBuffer<T>>(factors_[i].rows, factors_[j].cols);
      into(product->view(), i, j, 0);
      shared_.push_back({i, j, std::move(product)});
      return;
    }
    share(i, size_t(plan_[i][j]));
    share(size_t(plan_[i][j]) + 1, j);
  }

  Matrix operand(size_t i, size_t j, int64_t index, Held& held) const {
    if (i == j) return single(i, index);
    for (const Shared& known : shared_) {
      if (known.i == i && known.j == j) return known.product->view();
    }
    held = std::make_unique<MatrixBuffer<T>>(factors_[i].rows, factors_[j].cols);
    into(held->view(), i, j, index);
    return held->view();
  }

  void into(const Matrix& out, size_t i, size_t j, int64_t index) const {
    const auto split = size_t(plan_[i][j]);
    for (const Shared& known : shared_) {
      if (known.i == i && known.j == j) return copy(out, known.product->view());
    }
    Held left, right;
    const Matrix a = operand(i, split, index, left), b = operand(split + 1, j, index, right);
    chain_lr::multiply<T>(out, a, b);
  }

  const std::vector<View>& matrices_;
  std::vector<Factor> factors_;
  std::vector<bool> batched_;
  Plan plan_;
  std::vector<Shared> shared_;
};

// y <- x wᵀ + scale low lastᵀ + bias, for y in the type that is summed in.
void add_up(const Matrix& y, const Matrix& x, const std::optional<Matrix>& w, const Matrix& low, const Adapter& adapter,
            const std::optional<Matrix>& bias) {
  double before = 0.0;  // factor of what y holds when a term is added
  if (bias) {
    Matrix repeated = *bias;
    repeated.rows = y.rows;
    repeated.row_stride = 0;
    copy(y, repeated);
    before = 1.0;
  }
  if (w) {
    gemm(y, x, w->transposed(), {.beta = before});
    before = 1.0;
  }
  gemm(y, low, adapter.last.transposed(), {.alpha = adapter.scale, .beta = before});
}

template <class T>
void adapter_linear(const Matrix& y, const Matrix& x, const std::optional<Matrix>& w, const Adapter& adapter,
                    const std::optional<Matrix>& bias) {
  const int64_t rank = adapter.first.cols;
  MatrixBuffer<T> low(y.rows, rank);
  gemm(low.view(), x, adapter.first);
  if (adapter.middle) {
    MatrixBuffer<T> turned(y.rows, rank);
    gemm(turned.view(), low.view(), adapter.middle->transposed());
    std::swap(low, turned);
  }
  if (y.dtype == dtype_of<T>::value) return add_up(y, x, w, low.view(), adapter, bias);
  MatrixBuffer<T> sums(std::min(y.rows, kStripRows), y.cols);
  for (int64_t i = 0; i < y.rows; i += kStripRows) {
    const int64_t rows = std::min(kStripRows, y.rows - i);
    const Matrix strip = sums.view().block(0, 0, rows, y.cols);
    add_up(strip, x.block(i, 0, rows, x.cols), w, low.view().block(i, 0, rows, rank), adapter, bias);
    copy(y.block(i, 0, rows, y.cols), strip);
  }
}

template <class T>
void adapter_gradient(const AdapterGradient& out, const Matrix& dy, const Matrix& x, const Adapter& adapter) {
  const int64_t rank = adapter.first.cols;
  MatrixBuffer<T> low_x(x.rows, rank), low_dy(x.rows, rank);
  gemm(low_x.view(), x, adapter.first);
  gemm(low_dy.view(), dy, adapter.last);
  gemm(out.last, dy.transposed(), low_x.view(), {.alpha = adapter.scale});
  gemm(out.first, x.transposed(), low_dy.view(), {.alpha = adapter.scale});
  if (out.middle) gemm(*out.middle, low_dy.view().transposed(), low_x.view(), {.alpha = adapter.scale});
}

}  // namespace

Plan plan_chain(const std::vector<Factor>& factors) {
  const size_t n = factors.size();
  Plan split(n, std::vector<int64_t>(n, 0));
  std::vector<std::vector<double>> cost(n, std::vector<double>(n, 0.0));
  std::vector<std::vector<int64_t>> count(n, std::vector<int64_t>(n, 1));
  for (size_t i = 0; i < n; ++i) count[i][i] = factors[i].count;
  for (size_t length = 2; length <= n; ++length) {
    for (size_t i = 0; i + length <= n; ++i) {
      const size_t j = i + length - 1;
      count[i][j] = std::max(count[i][j - 1], factors[j].count);
      cost[i][j] = std::numeric_limits<double>::infinity();
      for (size_t s = i; s < j; ++s) {
        const double last = double(count[i][j]) *
                            product_cost(double(factors[i].rows), double(factors[s].cols), double(factors[j].cols));
        const double total = cost[i][s] + cost[s + 1][j] + last;
        if (total < cost[i][j]) {
          cost[i][j] = total;
          split[i][j] = int64_t(s);
        }
      }
    }
  }
  return split;
}

void chain_matmul_cpu(const View& out, const std::vector<View>& matrices) {
  with_work_type(out.dtype, [&](auto tag) {
    if (out.size() == 0) return;
    const Chain<decltype(tag)> chain(matrices);
    const int64_t count = out.rank > 2 ? out.batch() : 1;
    const auto one = [&](int64_t i) { chain.multiply(out.matrix(i), i); };
    if (count > 1 && chain.work(0, chain.last()) <= kOneThreadEach) return parallel_for(count, one);
    for (int64_t i = 0; i < count; ++i) one(i);
  });
}

void adapter_linear_cpu(const Matrix& y, const Matrix& x, const std::optional<Matrix>& w, const Adapter& adapter,
                        const std::optional<Matrix>& bias) {
  with_work_type(y.dtype, [&](auto tag) { adapter_linear<decltype(tag)>(y, x, w, adapter, bias); });
}

void adapter_gradient_cpu(const AdapterGradient& out, const Matrix& dy, const Matrix& x, const Adapter& adapter) {
  with_work_type(out.last.dtype, [&](auto tag) { adapter_gradient<decltype(tag)>(out, dy, x, adapter); });
}

}  // namespace lowrank::chain_lr
