// Vector primitives, compiled once per instruction-set level. Several independent accumulators hide the latency of
// the additions; their number is part of the result, so it is the same at every level.
#include "lowrank_core/dense.h"

namespace lowrank::LRC_LEVEL {
namespace {

constexpr int64_t kLanes = 32;

LRC_HD double fold(double* lane) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

template <class T>
LRC_HD double dot_lanes(const T* x, const T* y, int64_t n) {
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lane[j] += double(x[i + j]) * double(y[i + j]);
  }
  for (int64_t j = 0; i < n; ++i, ++j) lane[j] += double(x[i]) * double(y[i]);
  return fold(lane);
}

}  // namespace

double dot(const double* x, const double* y, int64_t n) { return dot_lanes(x, y, n); }
double dot(const float* x, const float* y, int64_t n) { return dot_lanes(x, y, n); }

void axpy(double* y, double a, const double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}
void axpy(float* y, float a, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

void axpy2(double* y, double a, const double* x, double b, const double* z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i] + b * z[i];
}

void rotate(double* x, double* y, double c, double s, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double xi = x[i], yi = y[i];
    x[i] = c * xi - s * yi;
    y[i] = s * xi + c * yi;
  }
}

}  // namespace lowrank::LRC_LEVEL
