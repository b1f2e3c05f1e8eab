#include "lowrank_core/rsvd_augment.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "lowrank_core/dense.h"
#include "lowrank_core/orthonormalize.h"
#include "rsvd/parts.h"

namespace lowrank::rsvd {
namespace {

// What a layer is between augmentation and truncation.
class Augmented {
 public:
  virtual ~Augmented() = default;
  virtual const Buffer<double>& values() const = 0;  // over 2^exponent
  virtual int exponent() const = 0;
  virtual void write(const AugmentOutput& out, int64_t rank) = 0;
};

// [b, the part of y beside b], of at most the rows' number of columns.
template <class T>
MatrixBuffer<T> augment(const Matrix& b, const Matrix& y) {
  const int64_t m = b.rows, r = b.cols, more = std::min(r, m - r);
  MatrixBuffer<T> both(m, r + more), beside(m, more), spare(m, more);
  copy(both.view().block(0, 0, m, r), b);
  copy(beside.view(), y.block(0, 0, m, more));
  orthonormalize_beside(beside, both.view().block(0, 0, m, r), spare);
  copy(both.view().block(0, r, m, more), beside.view());
  return both;
}

// One array of a layer, divided by a power of two unless its numbers are moderate.
template <class T>
struct Term : Scaled<T> {
  int size;  // exponent of the largest, undivided

  explicit Term(const Matrix& a) : Term(a, largest_magnitude(a)) {}

 private:
  Term(const Matrix& a, double largest)
      : Scaled<T>(a, largest == 0.0 || is_moderate<T>(largest) ? 0 : exponent_of(largest)),
        size(exponent_of(largest)) {}
};

template <class T>
struct Terms {
  Term<double> s;
  Term<T> gv, gu;
  std::optional<Term<double>> gs;

  explicit Terms(const AugmentInput& in) : s(in.s), gv(in.gv), gu(in.gu) {
    if (in.gs) gs.emplace(*in.gs);
    for (const Matrix& m : {in.u, in.v}) check_finite(largest_magnitude(m));
  }

  // Of the largest number of the step, or 0 where that is moderate.
  int exponent(double lr) const {
    constexpr int usual = sizeof(T) == 4 ? 100 : 400;
    const int step = std::max({gv.size, gu.size, gs ? gs->size : kZero});
    const int largest = std::max(s.size, exponent_of(std::abs(lr)) + step);
    return largest < kZero / 2 || std::abs(largest) <= usual ? 0 : largest;
  }
};

template <class T>
class Layer : public Augmented {
 public:
  Layer(const AugmentInput& in, double lr) : Layer(in, Terms<T>(in), lr) {}

 private:
  Layer(const AugmentInput& in, Terms<T> terms, double lr)
      : rank_(in.u.cols),
        exponent_(terms.exponent(lr)),
        u_(augment<T>(in.u, terms.gv.values.view())),
        v_(augment<T>(in.v, terms.gu.values.view())),
        size_(std::max(u_.cols(), v_.cols())),
        p_(size_, size_),
        q_(size_, size_),
        values_(size_) {
    MatrixBuffer<double> block(size_, size_), qt(size_, size_);
    std::fill(block.data(), block.data() + block.size(), 0.0);
    const int64_t r = rank_;
    const Matrix core = block.view().block(0, 0, r, r);
    copy_divided(core, terms.s.values.view(), std::ldexp(1.0, exponent_ - terms.s.exponent));
    const auto rate = [&](int exponent) { return -std::ldexp(lr, exponent - exponent_); };  // of a term so divided
    const double rate_v = rate(terms.gv.exponent), rate_u = rate(terms.gu.exponent);
    const Matrix gv = terms.gv.values.view(), gu = terms.gu.values.view();
    if (terms.gs) {
      const double rate_s = rate(terms.gs->exponent);
      for (int64_t i = 0; i < r; ++i) vectors<double>().axpy(block.row(i), rate_s, terms.gs->values.row(i), r);
    } else {
      gemm(core, in.u.transposed(), gv, {.alpha = rate_v, .beta = 1.0});
    }
    // S Vᵀ V~ and U~ᵀ U S vanish, so of L and K only the gradients are left beside the core.
    const Matrix more_v = v_.view().block(0, r, v_.rows(), v_.cols() - r);
    const Matrix more_u = u_.view().block(0, r, u_.rows(), u_.cols() - r);
    gemm(block.view().block(0, r, r, more_v.cols), gu.transposed(), more_v, {.alpha = rate_u});
    gemm(block.view().block(r, 0, more_u.cols, r), more_u.transposed(), gv, {.alpha = rate_v});
    jacobi_svd(block.data(), size_, p_.data(), values_.data(), qt.data(), kJacobiTol<T>);
    check_finite(size_ == 0 ? 0.0 : values_[0]);
    copy(q_.view(), qt.view().transposed());
  }

 public:
  int exponent() const override { return exponent_; }
  const Buffer<double>& values() const override { return values_; }

  void write(const AugmentOutput& out, int64_t rank) override {
    MatrixBuffer<T> u = rotated(u_, p_, rank), v = rotated(v_, q_, rank);
    for (int64_t j = 0; j < rank; ++j) {
      T largest = u.at(0, j);
      for (int64_t i = 1; i < u.rows(); ++i) largest = dominant(largest, u.at(i, j));
      const T sign = sign_of(largest);
      for (int64_t i = 0; i < u.rows(); ++i) u.at(i, j) *= sign;
      for (int64_t i = 0; i < v.rows(); ++i) v.at(i, j) *= sign;
      for (int64_t i = 0; i < rank_; ++i) {
        p_.at(i, j) *= double(sign);
        q_.at(i, j) *= double(sign);
      }
    }
    MatrixBuffer<T> s(rank, rank);
    std::fill(s.data(), s.data() + s.size(), T(0));
    for (int64_t j = 0; j < rank; ++j) {
      s.at(j, j) = T(std::ldexp(values_[j], exponent_));
      check_finite(double(s.at(j, j)));
    }
    copy(out.s.block(0, 0, rank, rank), s.view());
    copy(out.u.block(0, 0, u.rows(), rank), u.view());
    copy(out.v.block(0, 0, v.rows(), rank), v.view());
    copy(out.left.block(0, 0, rank_, rank), p_.view().block(0, 0, rank_, rank));
    copy(out.right.block(0, 0, rank_, rank), q_.view().block(0, 0, rank_, rank));
  }

 private:
  // The first `rank` columns of basis rotation. Orthonormalized once more: that takes off the drift of many steps, and
  // fills in what a vanishing singular value, whose vector may lie in the padding of the block, leaves out.
  static MatrixBuffer<T> rotated(MatrixBuffer<T>& basis, MatrixBuffer<double>& rotation, int64_t rank) {
    MatrixBuffer<T> out(basis.rows(), rank), spare(basis.rows(), rank), factor(basis.cols(), rank);
    copy(factor.view(), rotation.view().block(0, 0, basis.cols(), rank));
    gemm(out.view(), basis.view(), factor.view());
    orthonormalize(out, spare);
    return out;
  }

  int64_t rank_;
  int exponent_;
  MatrixBuffer<T> u_, v_;
  int64_t size_;
  MatrixBuffer<double> p_, q_;
  Buffer<double> values_;
};

// Norm of what follows the first `rank` values.
double tail(const Buffer<double>& values, int64_t rank) {
  double sum = 0.0;
  for (int64_t i = values.size() - 1; i >= rank; --i) sum += values[i] * values[i];
  return std::sqrt(sum);
}

int64_t rank_by_tolerance(const Buffer<double>& values, int64_t width, const AugmentRule& rule) {
  const double allowed = rule.tol * tail(values, 0);
  int64_t rank = 0;
  while (rank < width && tail(values, rank) > allowed) ++rank;
  return std::min(std::max(std::min(rank, rule.max_rank), rule.min_rank), width);
}

// Takes ranks back until they fit the budget: the smallest weighted value goes first, of equal ones the last layer's.
void fit_budget(std::vector<int64_t>& ranks, const std::vector<std::unique_ptr<Augmented>>& layers,
                const std::vector<AugmentInput>& inputs, const AugmentRule& rule) {
  int64_t total = 0;
  for (const int64_t rank : ranks) total += rank;
  while (total > *rule.budget) {
    size_t smallest = ranks.size();
    long double least = 0;  // its exponents hold any product of two float64
    for (size_t i = 0; i < ranks.size(); ++i) {
      if (ranks[i] <= rule.min_rank) continue;
      const long double weighted = static_cast<long double>(inputs[i].weight) * layers[i]->values()[ranks[i] - 1];
      const long double value = std::ldexp(weighted, layers[i]->exponent());
      if (smallest == ranks.size() || value <= least) {
        smallest = i;
        least = value;
      }
    }
    if (smallest == ranks.size()) return;
    --ranks[smallest];
    --total;
  }
}

}  // namespace

std::vector<AugmentResult> augment_truncate_cpu(const std::vector<AugmentOutput>& out,
                                                const std::vector<AugmentInput>& layers, const AugmentRule& rule) {
  const auto count = int64_t(layers.size());
  std::vector<std::unique_ptr<Augmented>> augmented(layers.size());
  parallel_for(count, [&](int64_t i) {
    const AugmentInput& in = layers[size_t(i)];
    if (out[size_t(i)].u.dtype == DType::kFloat64) {
      augmented[size_t(i)] = std::make_unique<Layer<double>>(in, rule.lr);
    } else {
      augmented[size_t(i)] = std::make_unique<Layer<float>>(in, rule.lr);
    }
  });
  std::vector<int64_t> ranks;
  for (size_t i = 0; i < layers.size(); ++i) {
    const int64_t width = augmented_width(layers[i].u.rows, layers[i].v.rows, layers[i].u.cols);
    ranks.push_back(rank_by_tolerance(augmented[i]->values(), width, rule));
  }
  if (rule.budget) fit_budget(ranks, augmented, layers, rule);
  std::vector<AugmentResult> results;
  for (size_t i = 0; i < layers.size(); ++i) {
    const double norm = tail(augmented[i]->values(), 0);
    results.push_back({ranks[i], norm == 0.0 ? 0.0 : tail(augmented[i]->values(), ranks[i]) / norm});
  }
  parallel_for(count, [&](int64_t i) { augmented[size_t(i)]->write(out[size_t(i)], ranks[size_t(i)]); });
  return results;
}

}  // namespace lowrank::rsvd
