// dense_cases: random matrices, and how far a factor is from what it should be.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>

#include "lowrank_core/dense.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/isa.h"

namespace lowrank {
namespace {

constexpr double kUnit64 = 0x1p-53, kUnit32 = 0x1p-24;

template <class T>
constexpr double unit() {
  return sizeof(T) == 4 ? kUnit32 : kUnit64;
}

struct Draw {
  uint32_t state = 1;
  double operator()() {
    state = state * 1664525u + 1013904223u;
    return double(state >> 8) * 0x1p-23 - 1.0;
  }
};

template <class T>
MatrixBuffer<T> random(int64_t m, int64_t n, Draw& draw) {
  MatrixBuffer<T> a(m, n);
  for (int64_t i = 0; i < m * n; ++i) a[i] = T(draw());
  return a;
}

template <class T>
MatrixBuffer<T> clone(MatrixBuffer<T>& a) {
  MatrixBuffer<T> b(a.rows(), a.cols());
  std::copy(a.data(), a.data() + a.size(), b.data());
  return b;
}

// Largest entry of |QᵀQ - 1| for the columns of q, in long double.
template <class T>
double defect(MatrixBuffer<T>& q) {
  long double worst = 0;
  for (int64_t i = 0; i < q.cols(); ++i) {
    for (int64_t j = 0; j < q.cols(); ++j) {
      long double sum = i == j ? -1 : 0;
      for (int64_t k = 0; k < q.rows(); ++k) sum += static_cast<long double>(q.at(k, i)) * q.at(k, j);
      worst = std::max(worst, std::abs(sum));
    }
  }
  return double(worst);
}

template <class T>
double norm(MatrixBuffer<T>& a) {
  return std::sqrt(squared_norm(a.view()));
}

// ‖y - Q Qᵀ y‖ / ‖y‖: what of y lies outside the span of q.
template <class T>
double outside(MatrixBuffer<T>& q, MatrixBuffer<T>& y) {
  MatrixBuffer<double> rest(y.rows(), y.cols()), inner(q.cols(), y.cols());
  copy(rest.view(), y.view());
  gemm(inner.view(), q.view().transposed(), y.view());
  gemm(rest.view(), q.view(), inner.view(), {.alpha = -1.0, .beta = 1.0});
  return norm(rest) / std::max(norm(y), 1e-300);
}

void every_level(const std::function<void()>& test) {
  for (const std::string& level : isa_levels()) {
    set_isa(level);
    test();
  }
  set_isa(isa_levels().back());
}

}  // namespace
}  // namespace lowrank
