#include "lowrank_core/dct_select.h"

#include <algorithm>
#include <cmath>

#include "dct_select/engine.h"
#include "dct_select/lines.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/parallel.h"

namespace lowrank::dct_select {
namespace {

constexpr int64_t kSlab = int64_t(1) << 21;  // numbers of a spectrum that are held at a time where it is a product
constexpr int64_t kColumnNumbers = int64_t(1) << 15;  // of a task that has whole columns

// Sums per coordinate, over all rows in a fixed order.
struct Sums {
  Buffer<double> squares, magnitudes;
  bool with_magnitudes;

  Sums(int64_t n, int norm_ord) : squares(n), magnitudes(norm_ord == 1 ? n : 0), with_magnitudes(norm_ord == 1) {
    std::fill_n(squares.data(), squares.size(), 0.0);
    std::fill_n(magnitudes.data(), magnitudes.size(), 0.0);
  }

  double* ranked() { return with_magnitudes ? magnitudes.data() : squares.data(); }
};

// The same for the identity and lines that run along memory, which are shared out as they lie there.
template <class T>
void add_columns(RowJob<T> job, Sums& sums) {
  const int64_t rows = job.in.rows, some = std::max<int64_t>(1, kColumnNumbers / std::max<int64_t>(1, rows));
  job.end = rows;
  parallel_chunks(job.in.cols, some, [&](int64_t begin, int64_t end) {
    RowJob<T> part = job;
    part.in = job.in.block(0, begin, rows, end - begin);
    if (part.residual.data) part.residual = job.residual.block(0, begin, rows, end - begin);
    part.squares = sums.squares.data() + begin;
    if (sums.with_magnitudes) part.magnitudes = sums.magnitudes.data() + begin;
    at_level<Level>().rows.of<T>().add_lines(part, rows_of_a_task(rows), false);
  });
}

// Adds the sums of all rows of `job`, task by task.
template <class T>
void add_sums(const Engine<T>& engine, const RowJob<T>& job, Sums& sums) {
  const int64_t rows = job.in.rows, each = rows_of_a_task(rows), tasks = ceil_div(rows, each);
  const Matrix &in = job.in, &other = job.residual.data ? job.residual : job.in;
  const bool identity = engine.transform().basis == Basis::kIdentity;
  const bool lines = identity && in.col_stride == 1 && other.col_stride == 1;
  if (identity && !lines && in.row_stride == 1 && other.row_stride == 1) return add_columns(job, sums);
  const int64_t n = sums.squares.size();
  Buffer<double> squares(tasks * n), magnitudes(sums.with_magnitudes ? tasks * n : 0);
  if (lines) {
    std::fill_n(squares.data(), squares.size(), 0.0);
    std::fill_n(magnitudes.data(), magnitudes.size(), 0.0);
  }
  parallel_for(tasks, [&](int64_t i) {
    RowJob<T> part = job;
    part.transform = &engine.transform();
    part.begin = i * each;
    part.end = std::min(rows, part.begin + each);
    part.squares = squares.data() + i * n;
    if (sums.with_magnitudes) part.magnitudes = magnitudes.data() + i * n;
    lines ? at_level<Level>().rows.of<T>().add_lines(part, each, true) : run_rows(part);
  });
  for (int64_t i = 0; i < tasks; ++i) {
    for (int64_t k = 0; k < n; ++k) sums.squares[k] += squares[i * n + k];
    for (int64_t k = 0; k < sums.magnitudes.size(); ++k) sums.magnitudes[k] += magnitudes[i * n + k];
  }
}

// The coordinates of rows in a basis, by a fast transform or by a product with the atoms.
template <class T>
class Analysis {
 public:
  Analysis(const Selection& selection, int64_t n) : n_(n) {
    if (selection.atoms) {
      atoms_ = selection.atoms;
    } else if (prefers_product(selection.basis, n, Method::kAuto)) {
      held_ = dct2_atoms<T>(n);
      const Matrix dct2 = row_major(const_cast<T*>(held_->data()), n, n);
      atoms_ = selection.basis == Basis::kDct2 ? dct2 : dct2.transposed();
    }
    forward_.emplace(atoms_ ? Basis::kIdentity : selection.basis, n);
    back_.emplace(atoms_ ? Basis::kIdentity : inverse(selection.basis), n);
  }

  // Sums of (scale times) the coordinates of g.
  void sum(const Matrix& g, double scale, Sums& sums) const {
    if (!atoms_) return add_sums<T>(*forward_, job(g, scale), sums);
    const int64_t rows = std::max(kTaskRows, kSlab / n_ / kTaskRows * kTaskRows);
    MatrixBuffer<T> slab(std::min(rows, g.rows), n_);
    for (int64_t i = 0; i < g.rows; i += rows) {
      slab.reshape(std::min(rows, g.rows - i), n_);
      gemm(slab.view(), g.block(i, 0, slab.rows(), n_), *atoms_);
      add_sums<T>(*forward_, job(slab.view(), scale), sums);
    }
  }

  // residual <- coordinates of g + residual, and its sums.
  void add(const Matrix& residual, const Matrix& g, Sums& sums) const {
    if (atoms_) {
      gemm(residual, g, *atoms_, {.beta = 1.0});
      return add_sums<T>(*forward_, job(residual, 1.0), sums);
    }
    RowJob<T> all = job(g, 1.0);
    all.residual = residual;
    add_sums<T>(*forward_, all, sums);
  }

  // The chosen coordinates of g.
  void coordinates(const Matrix& out, const Matrix& g, const int64_t* columns, double scale) const {
    if (atoms_) return gemm(out, g, chosen(columns, out.cols).view());
    RowJob<T> all = job(g, scale);
    all.out = out;
    all.out_columns = columns;
    all.scale_out = 1.0 / scale;
    forward_->run(all);
  }

  void back(const Matrix& out, const Matrix& coeffs, const int64_t* columns) const {
    if (atoms_) return gemm(out, coeffs, chosen(columns, coeffs.cols).view().transposed());
    if (back_->transform().basis == Basis::kIdentity) return put_columns(out, coeffs, columns);
    RowJob<T> all{.transform = nullptr, .in = coeffs, .in_columns = columns, .scale = back_->amplitude()};
    all.out = out;
    back_->run(all);
  }

 private:
  RowJob<T> job(const Matrix& in, double scale) const {
    return {.transform = nullptr, .in = in, .scale = scale * forward_->amplitude()};
  }

  // [n, count]: the atoms of these numbers.
  MatrixBuffer<T> chosen(const int64_t* columns, int64_t count) const {
    MatrixBuffer<T> found(n_, count);
    for (int64_t k = 0; k < count; ++k) {
      const Matrix target = found.view().block(0, k, n_, 1);
      copy(target, atoms_->block(0, columns[k], n_, 1));
    }
    return found;
  }

  int64_t n_;
  std::optional<Matrix> atoms_;
  std::shared_ptr<const MatrixBuffer<T>> held_;
  std::optional<Engine<T>> forward_, back_;
};

// The `count` best of n scores, ascending; a total order, so the set does not depend on how it is found.
void choose(int64_t* indices, int64_t count, const double* scores, int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (int64_t k = 0; k < n; ++k) order[size_t(k)] = k;
  if (count < n) {
    std::nth_element(order.begin(), order.begin() + count, order.end(),
                     [&](int64_t i, int64_t j) { return ranks_before(scores[i], i, scores[j], j); });
  }
  std::sort(order.begin(), order.begin() + count);
  std::copy_n(order.begin(), count, indices);
}

double total(const Sums& sums) {
  double sum = 0.0;
  for (int64_t k = 0; k < sums.squares.size(); ++k) sum += sums.squares[k];
  return sum;
}

// Chooses, and returns the share captured. The two sums run over ascending indices and rounding is monotonic, so the
// share cannot exceed 1.
double choose_by(Sums& sums, int64_t* indices, int64_t count) {
  choose(indices, count, sums.ranked(), sums.squares.size());
  double captured = 0.0;
  for (int64_t k = 0; k < count; ++k) captured += sums.squares[indices[k]];
  const double all = total(sums);
  return all > 0.0 ? captured / all : 1.0;
}

double inverse_scale(const Matrix& g) { return std::min(1.0 / scale_of(g), 0x1p1000); }

// Squares of float32 fit float64, whatever their size; those of float64 are scaled. A float32 transform can overflow
// where its input does not: then it is scaled, too.
template <class T>
double summed(const Analysis<T>& analysis, const Matrix& g, Sums& sums, int norm_ord) {
  double scale = sizeof(T) == sizeof(double) ? inverse_scale(g) : 1.0;
  analysis.sum(g, scale, sums);
  if (!std::isfinite(total(sums)) && scale == 1.0) {
    scale = inverse_scale(g);
    sums = Sums(g.cols, norm_ord);
    analysis.sum(g, scale, sums);
  }
  if (!std::isfinite(total(sums))) throw NotFinite();
  return scale;
}

template <class T>
void rotate(const Matrix& out, const Matrix& x, const std::vector<int64_t>& source) {
  const Matrix to = out, given = x;  // copies, which no store can change for all that the compiler knows
  const int64_t* const sources = source.data();
  if (std::abs(out.col_stride) <= std::abs(out.row_stride)) {
    parallel_chunks(out.rows, kTaskRows, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* const line = to.as<T>() + i * to.row_stride;
        const T* const old = given.as<T>() + i * given.row_stride;
        for (int64_t k = 0; k < to.cols; ++k) {
          line[k * to.col_stride] = sources[k] < 0 ? T{} : old[sources[k] * given.col_stride];
        }
      }
    });
  } else {
    parallel_chunks(out.cols, 1, [=](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        T* const line = to.as<T>() + k * to.col_stride;
        const bool held = sources[k] >= 0;
        const T* const old = held ? given.as<T>() + sources[k] * given.col_stride : nullptr;
        for (int64_t i = 0; i < to.rows; ++i) line[i * to.row_stride] = held ? old[i * given.row_stride] : T{};
      }
    });
  }
}

}  // namespace

double select_cpu(int64_t* indices, const Matrix& coeffs, const Matrix& g, const Selection& selection) {
  if (g.cols == 0) return 1.0;
  return with_work_type(g.dtype, [&](auto tag) {
    const Analysis<decltype(tag)> analysis(selection, g.cols);
    Sums sums(g.cols, selection.norm_ord);
    const double scale = summed(analysis, g, sums, selection.norm_ord);
    const double captured = choose_by(sums, indices, coeffs.cols);
    if (!coeffs.empty()) analysis.coordinates(coeffs, g, indices, scale);
    return captured;
  });
}

double feedback_cpu(int64_t* indices, const Matrix& coeffs, const Matrix& residual, const Matrix& g, double keep,
                    const Selection& selection, bool finite) {
  if (g.cols == 0) return 1.0;
  const bool sums_tell = finite && g.dtype != DType::kFloat64;  // squares of float64 can overflow
  const bool begins = sums_tell || (std::isfinite(largest_magnitude(g)) && std::isfinite(largest_magnitude(residual)) &&
                                    (!selection.atoms || std::isfinite(largest_magnitude(*selection.atoms))));
  if (!begins) throw NotFinite();  // before anything is written
  return with_work_type(g.dtype, [&](auto tag) {
    using T = decltype(tag);
    Sums sums(g.cols, selection.norm_ord);
    Analysis<T>(selection, g.cols).add(residual, g, sums);
    if (sums_tell && !std::isfinite(total(sums))) throw NotFinite();
    const double captured = choose_by(sums, indices, coeffs.cols);
    if (coeffs.empty()) return captured;
    take_columns(coeffs, residual, indices, keep);
    return captured;
  });
}

void project_back_cpu(const Matrix& out, const Matrix& coeffs, const int64_t* indices, const Selection& selection) {
  if (out.empty()) return;
  static constexpr int64_t none = 0;  // an empty list may have no address, which would mean all coordinates
  if (coeffs.cols == 0) indices = &none;
  with_work_type(out.dtype, [&](auto tag) { Analysis<decltype(tag)>(selection, out.cols).back(out, coeffs, indices); });
}

void rotate_cpu(const Matrix& out, const Matrix& x, const int64_t* old_indices, const int64_t* new_indices) {
  std::vector<int64_t> source(size_t(out.cols), -1);
  for (int64_t a = 0, b = 0; a < x.cols && b < out.cols;) {  // both ascend
    if (old_indices[a] == new_indices[b])
      source[size_t(b++)] = a++;
    else if (old_indices[a] < new_indices[b])
      ++a;
    else
      ++b;
  }
  switch (item_size(out.dtype)) {
    case 8:
      return rotate<uint64_t>(out, x, source);
    case 4:
      return rotate<uint32_t>(out, x, source);
    default:
      return rotate<uint16_t>(out, x, source);
  }
}

}  // namespace lowrank::dct_select
