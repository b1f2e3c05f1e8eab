// features: what stands for the exponential of scores.
#pragma once

#include <utility>

#include "chain_lr/head.h"

namespace lowrank::chain_lr {

constexpr int64_t kFeatureRows = 64;  // that one task computes

// All monomials up to a degree, each over the root of the product of its exponents' factorials, so that features of q
// times features of k is exp(q k) cut after the degree. Those of one degree are ordered by their first variable: times
// a variable, the monomials of the degree below from that variable on are then a run of neighbours.
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
    for (const Known& known : all) scale_.push_back(1.0 / std::sqrt(known.factorials));
  }

  int64_t count() const { return int64_t(scale_.size()); }

  template <class T>
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
    for (int64_t f = 0; f < count(); ++f) to[f] *= T(scale_[size_t(f)]);
  }

 private:
  int64_t depth_, degree_;
  std::vector<std::vector<int64_t>> starts_;  // of degree d: where variable i comes first, and the end
  std::vector<double> scale_;
};

template <class T>
MatrixBuffer<T> monomials(const Monomials& of, const MatrixBuffer<T>& x) {
  MatrixBuffer<T> out(x.rows(), of.count());
  parallel_chunks(x.rows(), kFeatureRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) of.of(x.row(i), out.row(i));
  });
  return out;
}

template <class T>
MatrixBuffer<T> given(const View& features, int64_t index) {
  const Matrix from = features.matrix(index);
  MatrixBuffer<T> out(from.rows, from.cols);
  copy(out.view(), from);
  if (!std::isfinite(largest_magnitude(out.view()))) throw NotFinite();
  return out;
}

template <class T>
struct Pair {
  MatrixBuffer<T> left, right;
};

template <class T>
Pair<T> features_of(const Features& features, const Head<T>& head, int64_t index) {
  const auto make = [&]() -> Pair<T> {
    if (features.left) return {given<T>(*features.left, index), given<T>(*features.right, index)};
    const Monomials of(head.depth, features.degree);
    return {monomials(of, head.effective), monomials(of, head.centered)};
  };
  Pair<T> pair = make();
  for (int64_t l = 0; l < head.keys; ++l) {
    if (!head.sees(l)) std::fill(pair.right.row(l), pair.right.row(l) + pair.right.cols(), T(0));
  }
  return pair;
}

}  // namespace lowrank::chain_lr
