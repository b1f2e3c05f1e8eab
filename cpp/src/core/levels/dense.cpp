// Vector primitives, compiled once per instruction-set level. Several independent accumulators hide the latency of
// the additions; their number is part of the result, so it is the same at every level.
#include "lowrank_core/dense.h"

#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/magnitude.h"
#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

constexpr int64_t kSums = 32;

LRC_INLINE double fold(double* lane) {
  for (int64_t width = kSums / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

// Number j of every kSums of them goes to sum j; the last ones are taken by vectors, too, with zeros behind the end.
template <class T>
double dot(const T* x, const T* y, int64_t n) {
  constexpr int width = kLanes<double>, vectors = int(kSums) / width;
  Vec<double> sum[vectors] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int v = 0; v < vectors; ++v) sum[v] += load<double>(x + i + v * width) * load<double>(y + i + v * width);
  }
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) {
    const int64_t at = i + v * width, left = n - at;
    if (left >= width) {
      sum[v] += load<double>(x + at) * load<double>(y + at);
    } else if (left > 0) {
      sum[v] += load_first<double>(x + at, left) * load_first<double>(y + at, left);
    }
  }
  double lane[kSums];
  for (int v = 0; v < vectors; ++v) store_bits(lane + v * width, sum[v]);
  return fold(lane);
}

template <class T>
struct Term {
  T factor;
  const T* row;
};

// y += sum over k of factor * row, in order, for as many vectors, which stay in registers meanwhile; vector v begins at
// element at(v). Where two overlap both come to the same.
template <int vectors, class T, class Terms, class At>
LRC_INLINE void combine_vectors(T* y, int64_t count, const Terms& term, const At& at) {
  Vec<T> sum[vectors];
  for (int v = 0; v < vectors; ++v) sum[v] = load<T>(y + at(v));
  for (int64_t k = 0; k < count; ++k) {
    const Term<T> t = term(k);
    const Vec<T> factor = broadcast(t.factor);
    for (int v = 0; v < vectors; ++v) sum[v] += factor * load<T>(t.row + at(v));
  }
  for (int v = 0; v < vectors; ++v) store_bits(y + at(v), sum[v]);
}

// The same for all n elements: the last vector ends with them.
template <class T, class Terms>
LRC_INLINE void combine(T* y, int64_t n, int64_t count, const Terms& term) {
  constexpr int width = kLanes<T>;
  int64_t j = 0;
  for (; n - j >= 5 * width; j += 4 * width) {
    combine_vectors<4>(y, count, term, [=](int v) { return j + v * width; });
  }
  const auto at = [=](int v) { return smaller(j + v * width, n - width); };
  switch ((n - j + width - 1) / width) {
    case 5:
      return combine_vectors<5>(y, count, term, at);
    case 4:
      return combine_vectors<4>(y, count, term, at);
    case 3:
      return combine_vectors<3>(y, count, term, at);
    case 2:
      return combine_vectors<2>(y, count, term, at);
  }
  if (n - j == width) return combine_vectors<1>(y, count, term, at);
  for (int64_t k = 0; j < n && k < count; ++k) {
    const Term<T> t = term(k);
    for (int64_t i = j; i < n; ++i) y[i] += t.factor * t.row[i];
  }
}

template <class T>
void axpy(T* y, T a, const T* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

void axpy2(double* y, double a, const double* x, double b, const double* z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i] + b * z[i];
}

void subtract_rows(double* y, const double* c, int64_t stride, const double* x, int64_t x_stride, int64_t count,
                   int64_t n) {
  combine(y, n, count, [&](int64_t k) { return Term<double>{-c[k * stride], x + k * x_stride}; });
}

template <class T>
void add_rows(T* y, const float* c, const int64_t* row, const T* x, int64_t x_stride, int64_t count, int64_t n) {
  combine(y, n, count, [&](int64_t k) { return Term<T>{T(c[k]), x + row[k] * x_stride}; });
}

void rotate(double* x, double* y, double c, double s, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double xi = x[i], yi = y[i];
    x[i] = c * xi - s * yi;
    y[i] = s * xi + c * yi;
  }
}

void rotate_strip(double* strip, const Rotation* turns, int64_t count) {
  constexpr int vectors = int(kStrip) / kLanes<double>;
  Vec<double> held[vectors];  // row `at`: what one rotation leaves in its upper row is mostly the next one's lower row
  int64_t at = -1;
  const auto put_back = [&] {
    for (int j = 0; j < vectors && at >= 0; ++j) store_bits(strip + at * kStrip + j * kLanes<double>, held[j]);
  };
  for (int64_t t = 0; t < count; ++t) {
    const int64_t i = turns[t].i;
    double* const upper = strip + i * kStrip;
    if (at != i + 1) {
      put_back();
      for (int j = 0; j < vectors; ++j) held[j] = load<double>(upper + kStrip + j * kLanes<double>);
    }
    const Vec<double> c = broadcast(turns[t].c), s = broadcast(turns[t].s);
    for (int j = 0; j < vectors; ++j) {
      const Vec<double> x = load<double>(upper + j * kLanes<double>), y = held[j];
      store_bits(upper + kStrip + j * kLanes<double>, s * x + c * y);
      held[j] = c * x - s * y;
    }
    at = i;
  }
  put_back();
}

double largest(DType dtype, const void* x, int64_t n) {
  return with_float_type(
      dtype, [&](auto tag) { return double(to_float(largest_magnitude_of(static_cast<const decltype(tag)*>(x), n))); });
}

void raise(double* kept, DType dtype, const void* x, int64_t n) {
  with_float_type(dtype, [&](auto tag) {
    const auto* const numbers = static_cast<const decltype(tag)*>(x);
    for (int64_t j = 0; j < n; ++j) {
      const double number = to_float(numbers[j]), size = number < 0.0 ? -number : number;
      kept[j] = size > kept[j] || size != size ? size : kept[j];
    }
  });
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const DenseLevel DenseLevel::LRC_LEVEL = {
    .vectors = {{LRC_LEVEL::dot<float>, LRC_LEVEL::axpy<float>, LRC_LEVEL::add_rows<float>},
                {LRC_LEVEL::dot<double>, LRC_LEVEL::axpy<double>, LRC_LEVEL::add_rows<double>}},
    .axpy2 = LRC_LEVEL::axpy2,
    .subtract_rows = LRC_LEVEL::subtract_rows,
    .rotate = LRC_LEVEL::rotate,
    .rotate_strip = LRC_LEVEL::rotate_strip,
    .largest = LRC_LEVEL::largest,
    .raise = LRC_LEVEL::raise,
};

}  // namespace lowrank
