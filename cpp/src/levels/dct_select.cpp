// Rows through a fast transform, two vectors of them at a time: row number l of the first vector is the real part and
// of the second one the imaginary part of the transform in lane l.
#include "lowrank_core/simd/dct_select.h"

#include "lowrank_core/simd/fft.h"
#include "lowrank_core/simd/pack.h"

namespace lowrank::LRC_LEVEL {
namespace {

using dct::Basis;
using dct::RowJob;
using dct::Transform;

// ---- transforms of a tile ----------------------------------------------------------------------------------------

template <class T>
LRC_HD void hadamard_pass4(T* z, int64_t sub) {
  for (int64_t j = 0; j < sub * kPoint<T>; j += kLanes<T>) {
    T* const at = z + j;
    const int64_t step = sub * kPoint<T>;
    const auto x0 = load_bits<Vec<T>>(at), x1 = load_bits<Vec<T>>(at + step), x2 = load_bits<Vec<T>>(at + 2 * step),
               x3 = load_bits<Vec<T>>(at + 3 * step);
    const auto a = x0 + x1, b = x0 - x1, c = x2 + x3, d = x2 - x3;
    store_bits(at, a + c);
    store_bits(at + step, b + d);
    store_bits(at + 2 * step, a - c);
    store_bits(at + 3 * step, b - d);
  }
}

template <class T>
LRC_HD void hadamard_pass2(T* z) {
  for (int64_t j = 0; j < kPoint<T>; j += kLanes<T>) {
    const auto a = load_bits<Vec<T>>(z + j), b = load_bits<Vec<T>>(z + kPoint<T> + j);
    store_bits(z + j, a + b);
    store_bits(z + kPoint<T> + j, a - b);
  }
}

// Natural order in and out: the matrix is a product of passes that commute.
template <class T>
void hadamard(T* z, int64_t n) {
  if (n < 4) {
    if (n == 2) hadamard_pass2(z);
    return;
  }
  hadamard_pass4(z, n / 4);
  for (int64_t part = 0; part < 4; ++part) hadamard(z + part * (n / 4) * kPoint<T>, n / 4);
}

// Cosine coefficients k and n - k from the Fourier coefficients at their places; the same one twice where k = n - k.
template <class T>
struct Turned {
  Complex<T> k, m;
};
template <class T>
LRC_HD Turned<T> turned(const Transform<T>& t, const T* z, int64_t k) {
  const Complex<T> zk = load_point(z + t.place_after[k] * kPoint<T>);
  const Complex<T> zm = load_point(z + t.place_after[t.n - k] * kPoint<T>);
  const Vec<T> c = broadcast(t.turns[2 * k]), s = broadcast(t.turns[2 * k + 1]);
  const dct::Pair<Vec<T>> y = dct::turn_pair(zk.re, zk.im, zm.re, zm.im, c, s);
  if (2 * k == t.n) return {{y.a_k, y.b_k}, {y.a_k, y.b_k}};
  return {{y.a_k, y.b_k}, {y.a_m, y.b_m}};
}

// Coefficient 0: the mean, times sqrt n.
template <class T>
LRC_HD Complex<T> turned_first(const Transform<T>& t, const T* z) {
  const Vec<T> amplitude = broadcast(T(__builtin_sqrt(1.0 / double(t.n))));
  const Complex<T> x = load_point(z + t.place_after[0] * kPoint<T>);
  return {x.re * amplitude, x.im * amplitude};
}

template <class T>
void turn_all(const Transform<T>& t, T* z) {
  store_point(z + t.place_after[0] * kPoint<T>, turned_first(t, z));
  for (int64_t k = 1; 2 * k <= t.n; ++k) {
    const Turned<T> y = turned(t, z, k);
    store_point(z + t.place_after[t.n - k] * kPoint<T>, y.m);
    store_point(z + t.place_after[k] * kPoint<T>, y.k);
  }
}

// The transposed map, with real and imaginary parts in each other's place: what follows is a forward transform, and
// its result is that of the inverse one with the parts still exchanged.
template <class T>
void turn_back(const Transform<T>& t, T* z) {
  const int64_t* const place = t.place_before;
  const Vec<T> amplitude = broadcast(T(__builtin_sqrt(1.0 / double(t.n))));
  const Complex<T> first = load_point(z + place[0] * kPoint<T>);
  store_point(z + place[0] * kPoint<T>, Complex<T>{first.im * amplitude, first.re * amplitude});
  for (int64_t k = 1, m = t.n - 1; k <= m; ++k, --m) {
    T *const at_k = z + place[k] * kPoint<T>, *const at_m = z + place[m] * kPoint<T>;
    const Complex<T> yk = load_point(at_k), ym = load_point(at_m);
    const Vec<T> c = broadcast(t.turns[2 * k]), s = broadcast(t.turns[2 * k + 1]);
    if (k == m) {
      store_point(at_k, Complex<T>{(c + c) * yk.im, (c + c) * yk.re});
      break;
    }
    const dct::Spectrum<Vec<T>> x = dct::turn_pair_back(dct::Pair<Vec<T>>{yk.re, ym.re, yk.im, ym.im}, c, s);
    store_point(at_k, Complex<T>{x.zk_im, x.zk_re});
    store_point(at_m, Complex<T>{x.zm_im, x.zm_re});
  }
}

// All but the last step of "dct2", which is left to whoever reads the coordinates: often few of them, or once.
template <class T>
void transform_tile(const Transform<T>& t, T* z) {
  switch (t.basis) {
    case Basis::kIdentity:
      return;
    case Basis::kHadamard:
      return hadamard(z, t.n);
    case Basis::kDct2:
      return transform_to_places(*t.plan, z);
    case Basis::kDct3:
      turn_back(t, z);
      return transform_from_places(*t.plan, z);
  }
}

// ---- arrays to tiles and back ------------------------------------------------------------------------------------

// Rows first .. first + 2 kLanes of a matrix of type S, as far as `end`, the others read as zeros and are not written.
template <class T, class S>
class Rows {
 public:
  Rows(const Matrix& m, int64_t first, int64_t end)
      : load_{m.as<S>(), end, m.cols, m.row_stride, m.col_stride, true}, first_(first), cols_(m.cols) {}

  // f(column, half, numbers): one vector down the rows for each column and half of the tile.
  template <class F>
  LRC_HD void for_each(const F& f) const {
    if (load_.depth_stride != 1) {
      for (int64_t j = 0; j < cols_; ++j) {
        for (int half = 0; half < 2; ++half) f(j, half, column(first_ + half * kLane, j));
      }
      return;
    }
    for (int64_t j = 0; j < cols_; j += kLane) {
      for (int half = 0; half < 2; ++half) {
        Vec<T> block[kLane];
        read(first_ + half * kLane, j, block);
        if (j + kLane <= cols_) {
#pragma GCC unroll 16
          for (int i = 0; i < kLane; ++i) f(j + i, half, block[i]);
        } else {
          for (int i = 0; j + i < cols_; ++i) f(j + i, half, block[i]);
        }
      }
    }
  }

  // Writes f(column, half) instead.
  template <class F>
  LRC_HD void write(const F& f) const {
    for (int64_t j = 0; j < cols_; j += kLane) {
      for (int half = 0; half < 2; ++half) {
        Vec<T> block[kLane];
        if (j + kLane <= cols_) {
#pragma GCC unroll 16
          for (int i = 0; i < kLane; ++i) block[i] = f(j + i, half);
        } else {
          for (int i = 0; i < kLane; ++i) block[i] = j + i < cols_ ? f(j + i, half) : Vec<T>{};
        }
        put(first_ + half * kLane, j, block);
      }
    }
  }

 private:
  static constexpr int kLane = kLanes<T>;

  LRC_HD Vec<T> column(int64_t row, int64_t j) const {
    if (load_.whole_outer(row, j, kLane) == kLane) return load_.template outer<T, false>(row, j);
    return load_.template outer<T, true>(row, j);
  }

  // block[i]: column j + i.
  LRC_HD void read(int64_t row, int64_t j, Vec<T> (&block)[kLane]) const {
    if (row + kLane <= load_.outer_size && j + kLane <= cols_) {
#pragma GCC unroll 16
      for (int i = 0; i < kLane; ++i) block[i] = load_.template depth<T, false>(row + i, j);
    } else {
      for (int i = 0; i < kLane; ++i) block[i] = load_.template depth<T, true>(row + i, j);
    }
    transpose(block);
  }

  LRC_HD void put(int64_t row, int64_t j, Vec<T> (&block)[kLane]) const {
    const int64_t rows = smaller(kLane, load_.outer_size - row), cols = smaller(kLane, cols_ - j);
    if (rows <= 0) return;
    S* const to = const_cast<S*>(load_.at(row, j));
    if (load_.depth_stride == 1) {
      transpose(block);
      if (rows == kLane) {
#pragma GCC unroll 16
        for (int i = 0; i < kLane; ++i) put_line(to + i * load_.outer_stride, 1, block[i], cols);
        return;
      }
      for (int64_t i = 0; i < rows; ++i) put_line(to + i * load_.outer_stride, 1, block[i], cols);
    } else {
      for (int64_t i = 0; i < cols; ++i) put_line(to + i * load_.depth_stride, load_.outer_stride, block[i], rows);
    }
  }

  static LRC_HD void put_line(S* to, int64_t step, const Vec<T>& v, int64_t count) {
    if (std::is_same_v<S, T> && step == 1 && count == kLane) return store_bits(to, v);
    T line[kLane];
    store_bits(line, v);
    if (step == 1 && count == kLane) {
      for (int64_t i = 0; i < kLane; ++i) to[i] = Store<S>::from(line[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i * step] = Store<S>::from(line[i]);
    }
  }

  StridedLoad<S> load_;
  int64_t first_, cols_;
};

template <class F>
LRC_HD void with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(double{});
    case DType::kBFloat16:
      return f(bfloat16{});
    case DType::kFloat16:
      return f(float16{});
    default:
      return f(float{});
  }
}

LRC_HD int64_t through(const int64_t* table, int64_t i) { return table ? table[i] : i; }

// ---- one tile ----------------------------------------------------------------------------------------------------

template <class T>
class Worker {
 public:
  explicit Worker(const RowJob<T>& job) : job_(job), t_(*job.transform), halves_swapped_(t_.basis == Basis::kDct3) {
    z_ = static_cast<T*>(workspace(Workspace::kTiles, size_t(t_.length * kPoint<T>) * sizeof(T)));
    const int64_t sums = job.magnitudes ? 2 : job.squares ? 1 : 0;
    squares_ = static_cast<double*>(workspace(Workspace::kPartial, size_t(sums * t_.n * kSum) * sizeof(double)));
    memset(squares_, 0, size_t(sums * t_.n * kSum) * sizeof(double));
    magnitudes_ = squares_ + t_.n * kSum;
  }

  void run() {
    for (int64_t row = job_.begin; row < job_.end; row += kPoint<T>) {
      load(row);
      transform_tile(t_, z_);
      to_turn_ = t_.basis == Basis::kDct2;
      if (to_turn_ && (job_.residual.data || (job_.out.data && !job_.out_columns))) {
        turn_all(t_, z_);
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
  static constexpr int64_t kSum = kLanes<double>;  // partial sums of one coordinate

  LRC_HD T* after(int64_t k, int half) const {
    return z_ + through(t_.place_after, k) * kPoint<T> + (half ^ int(halves_swapped_)) * kLanes<T>;
  }

  void load(int64_t row) {
    if (job_.in_columns) memset(z_, 0, size_t(t_.n * kPoint<T>) * sizeof(T));
    const Vec<T> scale = broadcast(T(job_.scale));
    with_type(job_.in.dtype, [&](auto tag) {
      Rows<T, decltype(tag)>(job_.in, row, job_.end).for_each([&](int64_t j, int half, const Vec<T>& v) {
        const int64_t place = through(t_.place_before, through(job_.in_columns, j));
        store_bits(z_ + place * kPoint<T> + half * kLanes<T>, v * scale);
      });
    });
  }

  void add_residual(int64_t row) {
    with_type(job_.residual.dtype, [&](auto tag) {
      const Rows<T, decltype(tag)> rows(job_.residual, row, job_.end);
      rows.for_each([&](int64_t k, int half, const Vec<T>& v) {
        T* const at = after(k, half);
        store_bits(at, load_bits<Vec<T>>(at) + v);
      });
      rows.write([&](int64_t k, int half) { return load_bits<Vec<T>>(after(k, half)); });
    });
  }

  void store(int64_t row) {
    const Vec<T> scale = broadcast(T(job_.scale_out));
    with_type(job_.out.dtype, [&](auto tag) {
      Rows<T, decltype(tag)>(job_.out, row, job_.end).write([&](int64_t j, int half) {
        const int64_t k = through(job_.out_columns, j);
        return (to_turn_ ? turned_half(k, half) : load_bits<Vec<T>>(after(k, half))) * scale;
      });
    });
  }

  LRC_HD Vec<T> turned_half(int64_t k, int half) const {
    const Turned<T> y = k > 0 ? turned(t_, z_, smaller(k, t_.n - k)) : Turned<T>{turned_first(t_, z_), {}};
    const Complex<T>& x = 2 * k <= t_.n ? y.k : y.m;
    return half == 0 ? x.re : x.im;
  }

  // Adds f of all numbers of each coordinate, as float64 vectors.
  template <class F>
  LRC_HD void accumulate(double* sums, const F& f) {
    const auto add = [&](int64_t k, const Complex<T>& x) {
      T numbers[kPoint<T>];
      store_point(numbers, x);
      auto sum = load_bits<Vec<double>>(sums + k * kSum);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kPoint<T>; i += kSum) {
        sum = f(sum, __builtin_convertvector(load_bits<Vector<T, kSum>>(numbers + i), Vec<double>));
      }
      store_bits(sums + k * kSum, sum);
    };
    if (!to_turn_) {
      for (int64_t k = 0; k < t_.n; ++k) add(k, load_point(z_ + through(t_.place_after, k) * kPoint<T>));
      return;
    }
    add(0, turned_first(t_, z_));
    for (int64_t k = 1; 2 * k <= t_.n; ++k) {
      const Turned<T> y = turned(t_, z_, k);
      add(k, y.k);
      if (2 * k < t_.n) add(t_.n - k, y.m);
    }
  }

  void add_squares() {
    accumulate(squares_, [](const Vec<double>& sum, const Vec<double>& x) { return multiply_add(x, x, sum); });
  }
  void add_magnitudes() {
    accumulate(magnitudes_, [](const Vec<double>& sum, const Vec<double>& x) { return sum + (x < 0 ? -x : x); });
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
  const bool halves_swapped_;
  bool to_turn_ = false;  // the coordinates are still Fourier coefficients
  T* z_;
  double *squares_, *magnitudes_;
};

}  // namespace

void dct_rows(const dct::RowJob<float>& job) { Worker<float>(job).run(); }
void dct_rows(const dct::RowJob<double>& job) { Worker<double>(job).run(); }

}  // namespace lowrank::LRC_LEVEL
