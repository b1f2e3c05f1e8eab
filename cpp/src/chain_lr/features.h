// features: what stands for the exponential of scores.
#pragma once

#include <utility>

#include "chain_lr/head.h"

namespace lowrank::chain_lr {

// All monomials up to a degree, each over the root of the product of its exponents' factorials, so that features of q
// times features of k is exp(q k) cut after the degree. Those of one degree are ordered by their first variable: times
// a variable, the monomials of the degree below from that variable on are then a run of neighbours.
template <class T>
class Monomials {
 public:
  Monomials(int64_t depth, int64_t degree) : depth_(depth), degree_(degree) {
    struct Known {
      int64_t variable, exponent;  // of the first variable
      double factorials;
    };
    std::vector<Known> all{{depth, 0, 1.0}};
    starts_.push_back(std::vector<int64_t>(size_t(depth) + 1, 0));
    starts_[0][size_t(depth)] = 1;
    for (int64_t d = 1; d <= degree; ++d) {
      const std::vector<int64_t> below = starts_.back();
      std::vector<int64_t> start;
      for (int64_t i = 0; i < depth; ++i) {
        start.push_back(int64_t(all.size()));
        for (int64_t f = below[size_t(i)]; f < below[size_t(depth)]; ++f) {
          const Known& known = all[size_t(f)];
          const int64_t exponent = known.variable == i ? known.exponent + 1 : 1;
          all.push_back({i, exponent, known.factorials * double(exponent)});
        }
      }
      start.push_back(int64_t(all.size()));
      starts_.push_back(std::move(start));
    }
    for (const Known& known : all) scale_.push_back(T(1.0 / std::sqrt(known.factorials)));
  }

  int64_t count() const { return int64_t(scale_.size()); }

  void of(const T* x, T* to) const {
    to[0] = T(1);
    for (int64_t d = 1; d <= degree_; ++d) {
      const auto &below = starts_[size_t(d - 1)], &start = starts_[size_t(d)];
      for (int64_t i = 0; i < depth_; ++i) {
        const T* const from = to + below[size_t(i)];
        T* const at = to + start[size_t(i)];
        const int64_t size = below[size_t(depth_)] - below[size_t(i)];
        for (int64_t f = 0; f < size; ++f) at[f] = x[i] * from[f];
      }
    }
    const T* const scale = scale_.data();
    for (int64_t f = 0, size = count(); f < size; ++f) to[f] *= scale[f];
  }

 private:
  int64_t depth_, degree_;
  std::vector<std::vector<int64_t>> starts_;  // of degree d: where variable i comes first, and the end
  std::vector<T> scale_;
};

template <class T>
MatrixBuffer<T> given(const View& features, int64_t index) {
  const Matrix from = features.matrix(index);
  MatrixBuffer<T> out(from.rows, from.cols);
  copy(out.view(), from);
  if (!std::isfinite(largest_magnitude(out.view()))) throw NotFinite();
  return out;
}

// The features of all queries or all keys of a head: what was given, or monomials, which are made where they are used.
template <class T>
class FeatureRows {
 public:
  FeatureRows(const std::optional<View>& features, int64_t index, const Monomials<T>& monomials,
              MatrixBuffer<T>& arguments)
      : monomials_(features ? nullptr : &monomials), arguments_(&arguments) {
    if (features) given_.emplace(given<T>(*features, index));
  }

  int64_t rows() const { return arguments_->rows(); }
  int64_t cols() const { return given_ ? given_->cols() : monomials_->count(); }
  bool are_monomials() const { return !given_; }
  MatrixBuffer<T>& arguments() const { return *arguments_; }

  // Those of rows i .. i + count; `scratch` has room for them.
  Matrix block(int64_t i, int64_t count, MatrixBuffer<T>& scratch) {
    if (given_) return given_->view().block(i, 0, count, given_->cols());
    for (int64_t k = 0; k < count; ++k) monomials_->of(arguments_->row(i + k), scratch.row(k));
    return scratch.view().block(0, 0, count, cols());
  }

 private:
  const Monomials<T>* monomials_;
  MatrixBuffer<T>* arguments_;
  std::optional<MatrixBuffer<T>> given_;
};

}  // namespace lowrank::chain_lr
