// The search for the dominant row space: sparse sketch or warm start, power iterations, one block Krylov step.
#include <algorithm>
#include <vector>

#include "lowrank_core/dense.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/orthonormalize.h"
#include "lowrank_core/parallel.h"
#include "rsvd/parts.h"

namespace lowrank::rsvd {
namespace {

// Tiles of A that are sketched at a time: a tile and the rows it is added to stay in L2, and its own rows are long
// enough for the prefetcher. The padding keeps a copy that transposes from hitting the same cache sets again and again.
constexpr int64_t kTileRows = 256, kTileCols = 512, kTilePadding = 16;

// The entries of a sketch [rows, cols], sorted so that those of one tile of rows and one column are neighbours, in the
// order of their rows.
struct SortedSketch {
  std::vector<int64_t> begin;  // of the entries of column j in tile t: begin[t * cols + j]
  std::vector<int64_t> row;    // within the tile
  std::vector<float> value;
};

SortedSketch sort_sketch(int64_t rows, int64_t cols, uint64_t seed) {
  const int64_t count = sketch_nonzeros(cols), tiles = (rows + kTileRows - 1) / kTileRows;
  SortedSketch sorted{std::vector<int64_t>(size_t(tiles * cols + 1)), std::vector<int64_t>(size_t(rows * count)),
                      std::vector<float>(size_t(rows * count))};
  parallel_chunks(rows, kTileRows, [&](int64_t begin, int64_t end) {
    std::vector<SketchEntry> entries;
    std::vector<int64_t> place(size_t(cols + 1), 0);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t t = 0; t < count; ++t) entries.push_back(sketch_entry(seed, 0, cols, i, t));
    }
    for (const SketchEntry& entry : entries) ++place[size_t(entry.col + 1)];
    for (int64_t j = 0; j < cols; ++j) {
      place[size_t(j + 1)] += place[size_t(j)];
      sorted.begin[size_t(begin / kTileRows * cols + j)] = begin * count + place[size_t(j)];
    }
    for (size_t e = 0; e < entries.size(); ++e) {
      const auto to = size_t(begin * count + place[size_t(entries[e].col)]++);
      sorted.row[to] = int64_t(e) / count;
      sorted.value[to] = entries[e].value;
    }
  });
  sorted.begin.back() = rows * count;
  return sorted;
}

// z [n, l] <- Aᵀ Omega: every row of A is added to a few rows of zᵀ, one pass over A in all.
template <class T>
void sketch_rows(MatrixBuffer<T>& z, const Matrix& a, uint64_t seed) {
  const int64_t m = a.rows, n = a.cols, l = z.cols();
  const SortedSketch omega = sort_sketch(m, l, seed);
  const bool in_place = a.dtype == dtype_of<T>::value && a.col_stride == 1;
  MatrixBuffer<T> zt(l, n);
  parallel_chunks(n, kTileCols, [&](int64_t begin, int64_t end) {
    for (int64_t j = 0; j < l; ++j) std::fill(zt.row(j) + begin, zt.row(j) + end, T(0));
    MatrixBuffer<T> tile(in_place ? 0 : kTileRows, end - begin + kTilePadding);
    for (int64_t top = 0; top < m; top += kTileRows) {
      const int64_t rows = std::min(kTileRows, m - top);
      const Matrix source = a.block(top, begin, rows, end - begin);
      if (!in_place) copy(tile.view().block(0, 0, rows, end - begin), source);
      const T* from = in_place ? source.as<T>() : tile.data();
      const int64_t stride = in_place ? source.row_stride : tile.cols();
      for (int64_t j = 0; j < l; ++j) {
        const int64_t first = omega.begin[size_t(top / kTileRows * l + j)];
        const int64_t last = omega.begin[size_t(top / kTileRows * l + j + 1)];
        vectors<T>().add_rows(zt.row(j) + begin, omega.value.data() + first, omega.row.data() + first, from, stride,
                              last - first, end - begin);
      }
    }
  });
  copy(z.view(), zt.view().transposed());
}

// The start of a warm search: the given basis beside fresh random columns. [m, l]. Only directions count, so columns of
// extreme size are divided by a power of two. Throws NotFinite.
template <class T>
void warm_start(MatrixBuffer<T>& q, const Matrix& basis, uint64_t seed) {
  const int64_t m = q.rows(), l = q.cols(), known = std::min(basis.cols, l), fresh = l - known;
  const std::vector<double> size = column_magnitudes(basis.block(0, 0, m, known));
  for (const double largest : size) check_finite(largest);
  if (std::all_of(size.begin(), size.end(), is_moderate<T>)) {
    copy(q.view().block(0, 0, m, known), basis.block(0, 0, m, known));
  } else {
    const Matrix lines = q.view().transposed(), from = basis.transposed();
    for (int64_t j = 0; j < known; ++j) {
      copy_divided(lines.block(j, 0, 1, m), from.block(j, 0, 1, m), scale_of(size[size_t(j)]));
    }
  }
  MatrixBuffer<T> omega(m, fresh);
  draw_sketch(omega.data(), m, fresh, seed, 0);
  copy(q.view().block(0, known, m, fresh), omega.view());
}

// Block power iteration between the rows of A and its columns: a half iteration is one product and one
// orthonormalization.
template <class T>
class BlockIteration {
 public:
  BlockIteration(const Matrix& a, int64_t l, Math math)
      : x_(longest(a), l), y_(longest(a), l), spare_(longest(a), l), math_(math) {}

  // Starts on the columns of A, from a basis of them.
  void start(const Matrix& a, const Matrix& basis, uint64_t seed) {
    ahead_ = a.transposed();
    on_rows_ = false;
    x_.reshape(a.rows, x_.cols());
    warm_start(x_, basis, seed);
  }

  // Starts on the rows, behind one product.
  void start(const Matrix& a, uint64_t seed, OrthPasses passes) {
    ahead_ = a;
    on_rows_ = true;
    x_.reshape(a.cols, x_.cols());
    sketch_rows(x_, a, seed);
    orthonormalize(x_, spare_, passes);
  }

  void half_iteration(OrthPasses passes) {
    y_.reshape(ahead_.rows, x_.cols());
    gemm(y_.view(), ahead_, x_.view(), {.math = math_});
    std::swap(x_, y_);
    ahead_ = ahead_.transposed();
    on_rows_ = !on_rows_;
    orthonormalize(x_, spare_, passes);
  }

  // The span of the block and, beside it, of `krylov` columns of what it would be two half iterations further.
  Span<T> span(int64_t krylov) {
    const int64_t here = x_.rows(), there = ahead_.rows, l = x_.cols();
    Span<T> out{MatrixBuffer<T>(here, l + krylov), MatrixBuffer<T>(there, l + krylov), on_rows_};
    const Matrix image = out.image.view().block(0, 0, there, l);
    copy(out.w.view().block(0, 0, here, l), x_.view());
    gemm(image, ahead_, x_.view());
    if (krylov == 0) return out;
    y_.reshape(there, l);
    copy(y_.view(), image);
    orthonormalize(y_, spare_, OrthPasses::kOne);
    MatrixBuffer<T> next(here, krylov);
    gemm(next.view(), ahead_.transposed(), y_.view().block(0, 0, there, krylov), {.math = math_});
    orthonormalize_beside(next, x_.view(), spare_);
    copy(out.w.view().block(0, l, here, krylov), next.view());
    gemm(out.image.view().block(0, l, there, krylov), ahead_, next.view());
    return out;
  }

 private:
  static int64_t longest(const Matrix& a) { return std::max(a.rows, a.cols); }

  MatrixBuffer<T> x_, y_, spare_;
  Matrix ahead_;  // what the next half iteration multiplies by: A or its transpose
  bool on_rows_ = true;
  Math math_;
};

}  // namespace

template <class T>
Span<T> search(const Matrix& a, const Matrix* basis, int64_t l, const Params& p) {
  const int64_t iterations = p.niter - (basis ? 1 : 0);
  const bool deep = iterations > 0 && krylov_pays(a.rows, a.cols, l);
  const int64_t halves = deep ? std::max<int64_t>(1, 2 * iterations - 2) : 2 * iterations + 1;
  const auto passes = [&](int64_t at) { return at == halves ? OrthPasses::kTwo : OrthPasses::kOne; };
  BlockIteration<T> block(a, l, p.math);
  if (basis) {
    block.start(a, *basis, p.seed);
    block.half_iteration(passes(1));
  } else {
    block.start(a, p.seed, passes(1));
  }
  for (int64_t at = 2; at <= halves; ++at) block.half_iteration(passes(at));
  return block.span(deep ? l : 0);
}

template Span<float> search<float>(const Matrix&, const Matrix*, int64_t, const Params&);
template Span<double> search<double>(const Matrix&, const Matrix*, int64_t, const Params&);

}  // namespace lowrank::rsvd
