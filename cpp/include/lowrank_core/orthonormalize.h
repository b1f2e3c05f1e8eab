// orthonormalize: an orthonormal basis of the columns of a tall matrix.
#pragma once

#include <cstdint>

#include "lowrank_core/buffer.h"

namespace lowrank {

enum class OrthMethod : uint8_t { kAuto, kCholQR2, kHouseholder, kNewtonSchulz };

// How orthogonal the result has to be: one pass is enough between two power iterations, where only the conditioning
// matters, two give orthogonality to working precision.
enum class OrthPasses : uint8_t { kOne = 1, kTwo = 2 };

// y [m, n], m >= n, is replaced by q with qᵀ q = I; `spare` holds at least m * n numbers. Cholesky QR with a float64
// Gram matrix of unit-norm columns; where that breaks down (columns dependent to about 1e-6), Householder QR, which
// never does: missing directions are then filled with arbitrary orthogonal ones. Columns may be of any finite size,
// each its own. T is float or double. Source: Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm",
// ETNA 44 (2015).
template <class T>
void orthonormalize(MatrixBuffer<T>& y, MatrixBuffer<T>& spare, OrthPasses passes = OrthPasses::kTwo);

// y [m, k] <- an orthonormal basis of the part of y that is orthogonal to z [m, l], which is orthonormal; l + k <= m.
// Directions that y does not have beside z are filled in.
template <class T>
void orthonormalize_beside(MatrixBuffer<T>& y, const Matrix& z, MatrixBuffer<T>& spare);

// The same as the first by one method alone. False where it breaks down: Cholesky QR and Newton-Schulz on dependent
// columns.
template <class T>
bool orthonormalize_by(OrthMethod method, MatrixBuffer<T>& y, MatrixBuffer<T>& spare);

}  // namespace lowrank
