// The two passes over a chunk of the Jacobian. Lanes run along the parameters.
#include "lowrank_core/simd/kalman_diag.h"

#include "lowrank_core/simd/rows.h"

namespace lowrank::LRC_LEVEL {
namespace {

using kalman_diag::Block;
using kalman_diag::Chunk;
using kalman_diag::kAlign;
using kalman_diag::kRowTile;
using kalman_diag::Update;

using Lane = Vec<double>;
constexpr int64_t kLane = kLanes<double>;
constexpr int kTall = int(kRowTile);
constexpr int kWide = kLane == 8 ? 4 : 2;    // of a tile of the Gram matrix
constexpr int kAcross = kLane == 8 ? 4 : 2;  // vectors of parameters of a tile of a product
static_assert(kAlign % (kAcross * kLane) == 0 && (kTall * kWide) % kLane == 0);

int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// ---- in and out of scratch ---------------------------------------------------------------------------------------

// to[i] <- from[i] factor[i], factor null for 1, and zeros as far as `padded`.
template <bool kScaled, class S>
void widen_line(double* to, const S* from, int64_t step, const double* factor, int64_t count, int64_t padded) {
  int64_t i = 0;
  if (step == 1) {
    for (; i + kLane <= count; i += kLane) {
      Lane x = load<double>(from + i);
      if constexpr (kScaled) x *= load_bits<Lane>(factor + i);
      store_bits(to + i, x);
    }
  }
  for (; i < count; ++i) {
    const double x = double(to_float(from[i * step]));
    to[i] = kScaled ? x * factor[i] : x;
  }
  for (; i < padded; ++i) to[i] = 0.0;
}

// Row `row` of a matrix, as far as the chunk goes.
void read_row(double* to, const Matrix& from, int64_t row, const double* factor, const Chunk& chunk) {
  const int64_t padded = round_up(chunk.count, kAlign);
  with_type(from.dtype, [&](auto tag) {
    using S = decltype(tag);
    const S* start = from.as<S>() + row * from.row_stride + chunk.begin * from.col_stride;
    factor ? widen_line<true>(to, start, from.col_stride, factor, chunk.count, padded)
           : widen_line<false>(to, start, from.col_stride, factor, chunk.count, padded);
  });
}

// All rows of a matrix, times factor, and rows of zeros from `rows` to `padded`.
void read_rows(double* to, const Matrix& from, const double* factor, const Chunk& chunk, int64_t padded) {
  for (int64_t row = 0; row < from.rows; ++row) read_row(to + row * chunk.stride, from, row, factor, chunk);
  for (int64_t row = from.rows; row < padded; ++row) {
    for (int64_t i = 0; i < chunk.stride; ++i) to[row * chunk.stride + i] = 0.0;
  }
}

template <class S>
LRC_HD S rounded(double x) {
  return Store<S>::from(accumulator_t<S>(x));
}

// theta <- theta + rate delta, rounded once.
template <class S>
void step_line(S* to, int64_t to_step, const S* from, int64_t from_step, const double* delta, double rate,
               int64_t count) {
  if (to_step == 1 && from_step == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = rounded<S>(double(to_float(from[i])) + rate * delta[i]);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    to[i * to_step] = rounded<S>(double(to_float(from[i * from_step])) + rate * delta[i]);
  }
}

template <class S>
void variance_line(S* to, int64_t to_step, const S* from, int64_t from_step, const double* p, int64_t count) {
  if (to_step == 1 && from_step == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = kalman_diag::stored(p[i], from[i]);
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i * to_step] = kalman_diag::stored(p[i], from[i * from_step]);
}

template <class S>
S* start_of(const Matrix& vector, const Chunk& chunk) {
  return vector.as<S>() + chunk.begin * vector.col_stride;
}

// ---- products ----------------------------------------------------------------------------------------------------

// out[r][c] += sum of a[r][i] b[c][i], rows of both `stride` apart, count a multiple of the lanes.
void gram_tile(double* out, int64_t out_stride, const double* a, const double* b, int64_t stride, int64_t count) {
  Lane sums[kTall * kWide] = {};
  for (int64_t i = 0; i < count; i += kLane) {
    Lane right[kWide];
#pragma GCC unroll 4
    for (int c = 0; c < kWide; ++c) right[c] = load_bits<Lane>(b + c * stride + i);
#pragma GCC unroll 4
    for (int r = 0; r < kTall; ++r) {
      const auto left = load_bits<Lane>(a + r * stride + i);
#pragma GCC unroll 4
      for (int c = 0; c < kWide; ++c) sums[r * kWide + c] = multiply_add(left, right[c], sums[r * kWide + c]);
    }
  }
#pragma GCC unroll 4
  for (int first = 0; first < kTall * kWide; first += kLane) {
    Lane lines[kLane];
#pragma GCC unroll 8
    for (int i = 0; i < kLane; ++i) lines[i] = sums[first + i];
    transpose(lines);
    Lane total = lines[0];
#pragma GCC unroll 8
    for (int i = 1; i < kLane; ++i) total += lines[i];
    double values[kLane];
    store_bits(values, total);
    for (int i = 0; i < kLane; ++i) out[(first + i) / kWide * out_stride + (first + i) % kWide] += values[i];
  }
}

// sums[r][v] = sum over k < depth of c[r][k] x[k][v]
LRC_HD void product(Lane (&sums)[kTall][kAcross], const double* c, int64_t c_stride, const double* x, int64_t x_stride,
                    int64_t depth) {
#pragma GCC unroll 4
  for (int r = 0; r < kTall; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kAcross; ++v) sums[r][v] = Lane{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Lane right[kAcross];
#pragma GCC unroll 4
    for (int v = 0; v < kAcross; ++v) right[v] = load_bits<Lane>(x + k * x_stride + v * kLane);
#pragma GCC unroll 4
    for (int r = 0; r < kTall; ++r) {
      const Lane left = broadcast(c[r * c_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < kAcross; ++v) sums[r][v] = multiply_add(left, right[v], sums[r][v]);
    }
  }
}

// delta and p of kAcross vectors of parameters; x points at their first row of the Jacobian.
void update_tile(double* delta, double* p, const double* score, const double* x, int64_t stride, const Update& u) {
  Lane squares[kAcross] = {}, explained[kAcross] = {}, norms[kAcross] = {};
  for (int64_t j = 0; j < u.outputs; j += kTall) {
    Lane y[kTall][kAcross];
    product(y, u.inverse + j * u.padded, u.padded, x, stride, smaller(j + kTall, u.outputs));
#pragma GCC unroll 4
    for (int r = 0; r < kTall; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kAcross; ++v) squares[v] = multiply_add(y[r][v], y[r][v], squares[v]);
    }
  }
  for (int64_t k = 0; k < u.outputs; ++k) {
    const Lane w = broadcast(u.w[k]);
#pragma GCC unroll 4
    for (int v = 0; v < kAcross; ++v) {
      const auto value = load_bits<Lane>(x + k * stride + v * kLane);
      explained[v] = multiply_add(w, value, explained[v]);
      norms[v] = multiply_add(value, value, norms[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kAcross; ++v) {
    const auto before = load_bits<Lane>(p + v * kLane), g = load_bits<Lane>(score + v * kLane);
    store_bits(delta + v * kLane, kalman_diag::direction(before, g, explained[v]));
    store_bits(p + v * kLane, kalman_diag::shrunk(before, before * squares[v], norms[v]));
  }
}

}  // namespace

void kalman_diag_gram(double* gram, int64_t padded, const Block& block, const Chunk& chunk) {
  double* const root = chunk.scratch + padded * chunk.stride;
  read_row(root, block.p, 0, nullptr, chunk);
  for (int64_t i = 0; i < chunk.count; ++i) root[i] = __builtin_sqrt(root[i]);  // NaN for a negative variance
  read_rows(chunk.scratch, block.jac, root, chunk, padded);
  if (block.score.data) read_row(chunk.scratch + block.jac.rows * chunk.stride, block.score, 0, root, chunk);
  const int64_t count = round_up(chunk.count, kAlign);
  for (int64_t j = 0; j < padded; j += kTall) {
    for (int64_t k = 0; k < j + kTall; k += kWide) {
      gram_tile(gram + j * padded + k, padded, chunk.scratch + j * chunk.stride, chunk.scratch + k * chunk.stride,
                chunk.stride, count);
    }
  }
}

void kalman_diag_update(const Update& update, const Block& block, const Chunk& chunk) {
  double* const x = chunk.scratch;
  double* const p = x + update.padded * chunk.stride;
  double* const score = p + chunk.stride;
  double* const delta = score + chunk.stride;
  read_rows(x, block.jac, nullptr, chunk, block.jac.rows);
  read_row(p, block.p, 0, nullptr, chunk);
  read_row(score, block.score, 0, nullptr, chunk);
  for (int64_t i = 0; i < chunk.count; i += kAcross * kLane) {
    update_tile(delta + i, p + i, score + i, x + i, chunk.stride, update);
  }
  with_type(block.theta.dtype, [&](auto tag) {
    using S = decltype(tag);
    step_line(start_of<S>(block.new_theta, chunk), block.new_theta.col_stride, start_of<S>(block.theta, chunk),
              block.theta.col_stride, delta, update.rate, chunk.count);
  });
  const int64_t to = block.new_p.col_stride, from = block.p.col_stride;
  if (block.p.dtype == DType::kFloat64) {
    variance_line(start_of<double>(block.new_p, chunk), to, start_of<double>(block.p, chunk), from, p, chunk.count);
  } else {
    variance_line(start_of<float>(block.new_p, chunk), to, start_of<float>(block.p, chunk), from, p, chunk.count);
  }
}

void kalman_diag_gain(const Matrix& k, const double* inverse, int64_t padded, const Block& block, const Chunk& chunk) {
  double* const x = chunk.scratch;
  double* const y = x + padded * chunk.stride;
  double* const p = y + padded * chunk.stride;
  read_row(p, block.p, 0, nullptr, chunk);
  read_rows(x, block.jac, p, chunk, block.jac.rows);
  for (int64_t i = 0; i < chunk.count; i += kAcross * kLane) {
    for (int64_t j = 0; j < block.jac.rows; j += kTall) {
      Lane sums[kTall][kAcross];
      product(sums, inverse + j * padded, padded, x + i, chunk.stride, block.jac.rows);
      for (int r = 0; r < kTall; ++r) {
        for (int v = 0; v < kAcross; ++v) store_bits(y + (j + r) * chunk.stride + i + v * kLane, sums[r][v]);
      }
    }
  }
  with_type(k.dtype, [&](auto tag) {
    using S = decltype(tag);
    for (int64_t i = 0; i < chunk.count; ++i) {
      S* row = k.as<S>() + (chunk.begin + i) * k.row_stride;
      for (int64_t j = 0; j < block.jac.rows; ++j) row[j * k.col_stride] = rounded<S>(y[j * chunk.stride + i]);
    }
  });
}

}  // namespace lowrank::LRC_LEVEL
