// Rows through a fast transform, one in each lane of a vector, and what is made of their coordinates.
#include "lowrank_core/simd/rows.h"
#include "dct_select/levels/lines.h"
#include "dct_select/levels/tile.h"
#include "lowrank_core/dispatch.h"

namespace lowrank::LRC_LEVEL {
namespace {

using dct_select::RowJob;

template <class I>
LRC_INLINE int64_t through(const I* table, int64_t i) {
  return table ? table[i] : i;
}

// Rows of simd/rows.h where a vector is one number.
template <class T, class S>
class Row {
 public:
  Row(const Matrix& m, int64_t row, int64_t)
      : at_(m.as<S>() + row * m.row_stride), step_(m.col_stride), cols_(m.cols) {}

  template <class F>
  LRC_INLINE void for_each(const F& f) const {
    for (int64_t j = 0; j < cols_; ++j) f(j, Single<T>{T(to_float(at_[j * step_]))});
  }
  template <class F>
  LRC_INLINE void write(const F& f) const {
    for (int64_t j = 0; j < cols_; ++j) at_[j * step_] = Store<S>::from(f(j)[0]);
  }

 private:
  S* at_;
  int64_t step_, cols_;
};

// Takes as many rows at a time as V has lanes.
template <class V>
class Worker {
 public:
  using T = Element<V>;

  explicit Worker(const RowJob<T>& job) : job_(job), t_(*job.transform) {
    z_ = static_cast<T*>(workspace(Workspace::kTiles, size_t(t_.vectors * kLanesOf<V>) * sizeof(T)));
    const int64_t sums = (job.magnitudes ? 2 : job.squares ? 1 : 0) * t_.n * kSum;
    if (sums == 0) return;
    squares_ = static_cast<double*>(workspace(Workspace::kPartial, size_t(sums) * sizeof(double)));
    memset(squares_, 0, size_t(sums) * sizeof(double));
    magnitudes_ = squares_ + t_.n * kSum;
  }

  void run() {
    for (int64_t row = job_.begin; row < job_.end; row += kLanesOf<V>) {
      load(row);
      transform_tile<V>(t_, z_);
      to_turn_ = t_.basis == Basis::kDct2;
      if (to_turn_ && (job_.residual.data || (job_.out.data && !job_.out_columns))) {
        turn_all<V>(t_, z_);
        to_turn_ = false;
      }
      if (job_.residual.data) add_residual(row);
      if (job_.squares) add_squares();
      if (job_.magnitudes) add_magnitudes();
      if (job_.out.data) store(row);
    }
    if (job_.squares) fold(squares_, job_.squares);
    if (job_.magnitudes) fold(magnitudes_, job_.magnitudes);
  }

 private:
  static constexpr int kSum = kLanesOf<V> == 1 ? 1 : kLanes<double>;  // partial sums of one coordinate
  using Sum = Vector<double, kSum>;
  template <class S>
  using Lines = std::conditional_t<kLanesOf<V> == 1, Row<T, S>, Rows<T, S>>;

  LRC_INLINE T* after(int64_t k) const { return z_ + through(t_.place_after, k) * kLanesOf<V>; }

  void load(int64_t row) {
    const bool all_written = !job_.in_columns && t_.vectors == t_.n;
    if (!all_written) memset(z_, 0, size_t(t_.vectors * kLanesOf<V>) * sizeof(T));
    const V scale = broadcast_to<V>(T(job_.scale));
    const int64_t* const columns = job_.in_columns;
    const int32_t* const place = t_.place_before;
    T* const z = z_;
    with_float_type(job_.in.dtype, [&](auto tag) {
      Lines<decltype(tag)>(job_.in, row, job_.end).for_each([=](int64_t j, const V& v) {
        set_number(z, through(place, through(columns, j)), v * scale);
      });
    });
  }

  void add_residual(int64_t row) {
    with_float_type(job_.residual.dtype, [&](auto tag) {
      const Lines<decltype(tag)> rows(job_.residual, row, job_.end);
      rows.for_each([&](int64_t k, const V& v) { store_bits(after(k), load_bits<V>(after(k)) + v); });
      rows.write([&](int64_t k) { return load_bits<V>(after(k)); });
    });
  }

  void store(int64_t row) {
    const V scale = broadcast_to<V>(T(job_.scale_out));
    const Transform<T> transform = t_;
    const int64_t* const columns = job_.out_columns;
    const T* const z = z_;
    const bool to_turn = to_turn_;
    with_float_type(job_.out.dtype, [&](auto tag) {
      Lines<decltype(tag)>(job_.out, row, job_.end).write([=](int64_t j) {
        const int64_t k = through(columns, j);
        return (to_turn ? turned_one<V>(transform, z, k) : number<V>(z, through(transform.place_after, k))) * scale;
      });
    });
  }

  // Adds f of all numbers of each coordinate, as float64 vectors.
  template <class F>
  LRC_INLINE void accumulate(double* sums, const F& f) {
    const auto add = [=](int64_t k, const V& x) {
      T numbers[kLanesOf<V>];
      store_bits(numbers, x);
      auto sum = load_bits<Sum>(sums + k * kSum);
#pragma GCC unroll 2
      for (int64_t i = 0; i < kLanesOf<V>; i += kSum) {
        sum = f(sum, __builtin_convertvector(load_bits<Vector<T, kSum>>(numbers + i), Sum));
      }
      store_bits(sums + k * kSum, sum);
    };
    const Transform<T> t = t_;
    const T* const z = z_;
    if (!to_turn_) {
      for (int64_t k = 0; k < t.n; ++k) add(k, number<V>(z, through(t.place_after, k)));
      return;
    }
    const bool even = t.n % 2 == 0;
    const int64_t half = t.n / 2;
    const Numbers<V> first = turned_first<V>(t, z);
    add(0, first.first);
    if (even) add(half, first.second);
    for (int64_t k = 1; k <= quads<V>(t); ++k) {
      const Quad<V> y = turned<V>(t, z, k);
      add(k, y.k.first);
      add(t.n - k, y.k.second);
      if (!even || 2 * k == half) continue;
      add(half - k, y.m.first);
      add(half + k, y.m.second);
    }
  }

  void add_squares() {
    accumulate(squares_, [](const Sum& sum, const Sum& x) { return multiply_add(x, x, sum); });
  }
  void add_magnitudes() {
    accumulate(magnitudes_, [](const Sum& sum, const Sum& x) { return sum + (x < 0 ? -x : x); });
  }

  void fold(const double* sums, double* to) const {
    for (int64_t k = 0; k < t_.n; ++k) {
      double part[kSum];
      memcpy(part, sums + k * kSum, sizeof part);
      for (int64_t width = kSum / 2; width > 0; width /= 2) {
        for (int64_t i = 0; i < width; ++i) part[i] += part[i + width];
      }
      to[k] = part[0];
    }
  }

  const RowJob<T>& job_;
  const Transform<T>& t_;
  bool to_turn_ = false;  // the coordinates are still Fourier coefficients
  T* z_;
  double *squares_ = nullptr, *magnitudes_ = nullptr;
};

// A tile with few rows in its lanes is mostly zeros. Where that shows, the rows go through one by one, by the same
// operations as in a lane, hence to the same bits.
template <class T>
void run(const RowJob<T>& job) {
  constexpr int64_t most_zeros = 4, large = int64_t(1) << 20;
  const bool few = (job.end - job.begin) * most_zeros <= kLanes<T>;
  if (few && job.transform->vectors * kVectorBytes > large) return Worker<Single<T>>(job).run();
  Worker<Vec<T>>(job).run();
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const dct_select::Level dct_select::Level::LRC_LEVEL = {
    {{LRC_LEVEL::run<float>, LRC_LEVEL::add_lines<float>}, {LRC_LEVEL::run<double>, LRC_LEVEL::add_lines<double>}}};

}  // namespace lowrank
