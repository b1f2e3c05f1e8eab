// The search for the dominant row space: sparse sketch or warm start, power iterations, one block Krylov step.
#include <algorithm>
#include <vector>

#include "lowrank_core/dense.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/orthonormalize.h"
#include "lowrank_core/parallel.h"
#include "rsvd_parts.h"

namespace lowrank::rsvd {
namespace {

// Tiles of A that are sketched at a time: a tile and the rows it is added to stay in L2. A width that is no power of
// two keeps a copy that transposes from hitting the same cache sets again and again.
constexpr int64_t kTileRows = 256, kTileCols = 496;

// The entries of a sketch [rows, cols], row by row.
std::vector<SketchEntry> sketch_entries(int64_t rows, int64_t cols, uint64_t seed) {
  const int64_t count = sketch_nonzeros(cols);
  std::vector<SketchEntry> entries(size_t(rows * count));
  parallel_chunks(rows, kSketchRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t t = 0; t < count; ++t) entries[size_t(i * count + t)] = sketch_entry(seed, 0, cols, i, t);
    }
  });
  return entries;
}

// z [n, l] <- Aᵀ Omega: every row of A is added to a few rows of zᵀ, one pass over A in all.
template <class T>
void sketch_rows(MatrixBuffer<T>& z, const Matrix& a, uint64_t seed) {
  const int64_t m = a.rows, n = a.cols, l = z.cols(), count = sketch_nonzeros(l);
  const std::vector<SketchEntry> omega = sketch_entries(m, l, seed);
  const bool in_place = a.dtype == dtype_of<T>::value && a.col_stride == 1;
  MatrixBuffer<T> zt(l, n);
  parallel_chunks(n, kTileCols, [&](int64_t begin, int64_t end) {
    for (int64_t j = 0; j < l; ++j) std::fill(zt.row(j) + begin, zt.row(j) + end, T(0));
    MatrixBuffer<T> tile(in_place ? 0 : kTileRows, end - begin);
    for (int64_t top = 0; top < m; top += kTileRows) {
      const int64_t rows = std::min(kTileRows, m - top);
      const Matrix source = a.block(top, begin, rows, end - begin);
      if (!in_place) copy(tile.view().block(0, 0, rows, end - begin), source);
      for (int64_t i = 0; i < rows; ++i) {
        const T* row = in_place ? source.as<T>() + i * source.row_stride : tile.row(i);
        for (int64_t t = 0; t < count; ++t) {
          const SketchEntry& entry = omega[size_t((top + i) * count + t)];
          LRC_AT_LEVEL(axpy, zt.row(entry.col) + begin, T(entry.value), row, end - begin);
        }
      }
    }
  });
  copy(z.view(), zt.view().transposed());
}

// The start of a warm search: the given basis beside fresh random columns. [m, l]
template <class T>
void warm_start(MatrixBuffer<T>& q, const Matrix& basis, uint64_t seed) {
  const int64_t m = q.rows(), l = q.cols(), known = std::min(basis.cols, l), fresh = l - known;
  copy(q.view().block(0, 0, m, known), basis.block(0, 0, m, known));
  MatrixBuffer<T> omega(m, fresh);
  draw_sketch(omega.data(), m, fresh, seed, 0);
  copy(q.view().block(0, known, m, fresh), omega.view());
}

}  // namespace

template <class T>
Span<T> search(const Matrix& a, const Matrix* basis, int64_t l, const Params& p) {
  const int64_t m = a.rows, n = a.cols, longest = std::max(m, n);
  const int64_t iterations = p.niter - (basis ? 1 : 0);
  const int64_t krylov = iterations > 0 ? std::min(l, std::min(m, n) - l) : 0;
  MatrixBuffer<T> q(longest, l), z(longest, l), spare(longest, l);
  Span<T> span{MatrixBuffer<T>(n, l + krylov), MatrixBuffer<T>(m, l + krylov)};
  z.reshape(n, l);
  if (basis) {
    q.reshape(m, l);
    warm_start(q, *basis, p.seed);
    gemm(z.view(), a.transposed(), q.view(), {.math = p.math});
  } else {
    sketch_rows(z, a, p.seed);
  }
  orthonormalize(z, spare, iterations <= 1 ? OrthPasses::kTwo : OrthPasses::kOne);
  for (int64_t i = 1; i < iterations; ++i) {
    q.reshape(m, l);
    gemm(q.view(), a, z.view(), {.math = p.math});
    orthonormalize(q, spare, OrthPasses::kOne);
    z.reshape(n, l);
    gemm(z.view(), a.transposed(), q.view(), {.math = p.math});
    orthonormalize(z, spare, i + 1 == iterations ? OrthPasses::kTwo : OrthPasses::kOne);
  }
  const Matrix image = span.image.view().block(0, 0, m, l);
  copy(span.w.view().block(0, 0, n, l), z.view());
  gemm(image, a, z.view());
  if (krylov == 0) return span;

  q.reshape(m, l);
  copy(q.view(), image);
  orthonormalize(q, spare, OrthPasses::kOne);
  MatrixBuffer<T> next(n, krylov);
  gemm(next.view(), a.transposed(), q.view().block(0, 0, m, krylov), {.math = p.math});
  orthonormalize_beside(next, z.view(), spare);
  copy(span.w.view().block(0, l, n, krylov), next.view());
  gemm(span.image.view().block(0, l, m, krylov), a, next.view());
  return span;
}

template Span<float> search<float>(const Matrix&, const Matrix*, int64_t, const Params&);
template Span<double> search<double>(const Matrix&, const Matrix*, int64_t, const Params&);

}  // namespace lowrank::rsvd
