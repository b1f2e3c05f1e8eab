// dense: vector primitives at every instruction-set level, and the small dense factorizations built on them.
// Everything here is float64 inside or says otherwise; tier D1.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "lowrank_core/buffer.h"
#include "lowrank_core/isa.h"
#include "lowrank_core/rotation.h"
#include "lowrank_core/view.h"

namespace lowrank {

constexpr int64_t kStrip = 32;  // columns of a strip of rows that `rotate_strip` turns

// Primitives of vectors of T.
template <class T>
struct VectorFunctions {
  // Sums in float64 whatever the storage type; fixed order for a given level.
  double (*dot)(const T* x, const T* y, int64_t n);
  // y += a x
  void (*axpy)(T* y, T a, const T* x, int64_t n);
  // y += sum over k < count of c[k] x[row[k]], in this order; a row of x begins every x_stride
  void (*add_rows)(T* y, const float* c, const int64_t* row, const T* x, int64_t x_stride, int64_t count, int64_t n);
};

struct DenseLevel {
  ByType<VectorFunctions> vectors;
  // y += a x + b z
  void (*axpy2)(double* y, double a, const double* x, double b, const double* z, int64_t n);
  // y -= sum over k < count of c[k stride] x[k], in this order; row k of x begins at x + k x_stride
  void (*subtract_rows)(double* y, const double* c, int64_t stride, const double* x, int64_t x_stride, int64_t count,
                        int64_t n);
  // (x, y) <- (c x - s y, s x + c y)
  void (*rotate)(double* x, double* y, double c, double s, int64_t n);
  // `count` rotations, one after the other, of the rows of strip [n, kStrip]
  void (*rotate_strip)(double* strip, const Rotation* turns, int64_t count);
  // Largest magnitude of n numbers of a floating-point dtype; NaN if there is one
  double (*largest)(DType dtype, const void* x, int64_t n);
  // kept[j] <- the larger of kept[j] and the magnitude of number j; a NaN stays
  void (*raise)(double* kept, DType dtype, const void* x, int64_t n);

  static const DenseLevel generic, avx2, avx512, avx512bf16;
};
inline const DenseLevel& dense_level() { return at_level<DenseLevel>(); }

template <class T>
const VectorFunctions<T>& vectors() {
  return dense_level().vectors.of<T>();
}

// Sum of the squares of all entries, in float64, any storage type and strides.
double squared_norm(const Matrix& a);

// Copies with one rounding at most; shapes must agree.
void copy(const Matrix& to, const Matrix& from);

// Upper Cholesky factor of the symmetric n x n matrix g, in place: g = Rᵀ R, lower triangle zeroed. False, with g
// destroyed, as soon as a pivot is not above `floor`.
bool cholesky_upper(double* g, int64_t n, double floor);

// Inverse of an upper triangular matrix with non-zero diagonal, in place.
void invert_upper(double* r, int64_t n);

// x <- x - beta v (vᵀ x), the Householder reflection, over n entries.
template <class T>
void reflect(T* x, const T* v, double beta, int64_t n) {
  const VectorFunctions<T>& vector = vectors<T>();
  const double projection = vector.dot(v, x, n);
  vector.axpy(x, T(-beta * projection), v, n);
}

// Turns the column v into the reflector that maps it onto the first axis; returns beta, or 0 where the column is no
// longer than `floor`: then the reflection is the identity.
template <class T>
double make_reflector(T* v, int64_t n, double floor) {
  const VectorFunctions<T>& vector = vectors<T>();
  const double norm = std::sqrt(vector.dot(v, v, n));
  if (!(norm > floor)) return 0.0;
  v[0] += T(std::copysign(norm, double(v[0])));
  return 2.0 / vector.dot(v, v, n);
}

// Largest magnitude of all entries; NaN if one is.
double largest_magnitude(const Matrix& a);

// The power of two next below the largest magnitude; 1 for a zero matrix, and where that is not finite. Divided by it,
// numbers have squares that neither overflow nor vanish.
double scale_of(double largest);
double scale_of(const Matrix& a);

// Largest magnitude of every column.
std::vector<double> column_magnitudes(const Matrix& a);

// Whether numbers of this size can be squared, divided by and multiplied with in T, with room to spare.
template <class T>
bool is_moderate(double size) {
  constexpr int exponent = sizeof(T) == 4 ? 60 : 400;
  return size > std::ldexp(1.0, -exponent) && size < std::ldexp(1.0, exponent);
}

// to <- from / scale, rounded once; exact where the scale is a power of two and nothing becomes subnormal.
void copy_divided(const Matrix& to, const Matrix& from, double scale);

constexpr int kQlSweeps = 60;      // for each eigenvalue; about 2 are usual
constexpr int kJacobiSweeps = 40;  // quadratic convergence from a good start: 1 to 3 are usual

// Eigenvectors of the symmetric n x n matrix a, as the ROWS of `rows`, and eigenvalues, in no particular order.
// Overwrites a. Throws NotConverged where `sweeps` are not enough for an eigenvalue.
void symmetric_eigenvectors(double* a, int64_t n, double* rows, double* values, int sweeps = kQlSweeps);

// SVD of a square n x n row-major matrix: a = u diag(s) vt, s descending, u and vt orthogonal to working precision even
// where a is singular or zero. One-sided Jacobi on a V, where V holds the eigenvectors of aᵀa: they leave almost
// nothing to rotate, and Jacobi restores the accuracy that squaring lost (Drmač & Veselić, "New fast and accurate
// Jacobi SVD algorithm I", SIAM J. Matrix Anal. Appl. 29, 2008, on why it is accurate). `tol`: the largest cosine
// left between two columns of u diag(s). Overwrites a. Throws NotConverged where it takes more than `sweeps`.
void jacobi_svd(double* a, int64_t n, double* u, double* s, double* vt, double tol, int sweeps = kJacobiSweeps);

}  // namespace lowrank
