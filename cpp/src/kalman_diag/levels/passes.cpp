// Two passes over a run of parameters. Lanes run along the parameters.
#include "kalman_diag/levels/lines.h"

namespace lowrank::LRC_LEVEL {
namespace {

using kalman_diag::kRowTile;
using kalman_diag::Update;

constexpr int kTall = int(kRowTile);
constexpr int kWide = kLane == 8 ? 4 : 2;    // of a tile of the Gram matrix
constexpr int kAcross = kLane == 8 ? 4 : 2;  // vectors of parameters of a tile of a product
static_assert(kAlign % (kAcross * kLane) == 0 && (kTall * kWide) % kLane == 0);

// The tiles of a Gram matrix of so many rows keep a sum for each lane from chunk to chunk; larger ones would leave L1.
constexpr int64_t kResident = 32;
constexpr int64_t kResidentTiles = (kResident / kTall) * (kResident / kTall + 1) / 2 * (kTall / kWide);

// ---- products ----------------------------------------------------------------------------------------------------

// sums[r kWide + c] += a[r][i] p[i] b[c][i], lane by lane; rows of both `stride` apart, count a multiple of the lanes.
// On the diagonal, what lies above it is left out where tiles are square.
template <bool kDiagonal>
void gram_tile(Lane* sums, const double* a, const double* b, const double* p, int64_t stride, int64_t count) {
  Lane local[kTall * kWide];
#pragma GCC unroll 16
  for (int i = 0; i < kTall * kWide; ++i) local[i] = sums[i];
  for (int64_t i = 0; i < count; i += kLane) {
    const auto weight = load_bits<Lane>(p + i);
    Lane right[kWide];
#pragma GCC unroll 4
    for (int c = 0; c < kWide; ++c) right[c] = load_bits<Lane>(b + c * stride + i) * weight;
#pragma GCC unroll 4
    for (int r = 0; r < kTall; ++r) {
      const auto left = load_bits<Lane>(a + r * stride + i);
#pragma GCC unroll 4
      for (int c = 0; c < kWide; ++c) {
        if (kDiagonal && kWide == kTall && c > r) continue;
        local[r * kWide + c] = multiply_add(left, right[c], local[r * kWide + c]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTall * kWide; ++i) sums[i] = local[i];
}

// out[r][c] += the sum of the lanes of sums[r kWide + c], which are zero afterwards.
void reduce_tile(double* out, int64_t out_stride, Lane* sums) {
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
    for (int i = 0; i < kLane; ++i) {
      out[(first + i) / kWide * out_stride + (first + i) % kWide] += values[i];
      sums[first + i] = Lane{};
    }
  }
}

// f(j, k, index) for the tiles at rows j and columns k that meet the lower triangle.
template <class F>
LRC_INLINE void for_each_tile(int64_t padded, const F& f) {
  int64_t index = 0;
  for (int64_t j = 0; j < padded; j += kTall) {
    for (int64_t k = 0; k < j + kTall; k += kWide) f(j, k, index++);
  }
}

// Rows of scratch: jac, score, zeros, p.
const double* read_chunk(const Block& block, const Chunk& chunk, int64_t padded) {
  double* const p = chunk.scratch + padded * chunk.stride;
  read_rows(chunk.scratch, block.jac, chunk);
  if (block.score.data) read_row(chunk.scratch + block.jac.rows * chunk.stride, block.score, 0, chunk);
  read_row(p, block.p, 0, chunk);
  for (int64_t i = 0; i < chunk.padded; ++i) p[i] = kalman_diag::checked_variance(p[i]);
  return p;
}

// sums[r][v] = sum over k < depth of c[r][k] x[k][v]
template <int R>
LRC_INLINE void product(Lane (&sums)[R][kAcross], const double* c, int64_t c_stride, const double* x, int64_t x_stride,
                        int64_t depth) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kAcross; ++v) sums[r][v] = Lane{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Lane right[kAcross];
#pragma GCC unroll 4
    for (int v = 0; v < kAcross; ++v) right[v] = load_bits<Lane>(x + k * x_stride + v * kLane);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Lane left = broadcast(c[r * c_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < kAcross; ++v) sums[r][v] = multiply_add(left, right[v], sums[r][v]);
    }
  }
}

// squares += what R rows of L⁻¹ from row j add to s / p, of kAcross vectors of parameters; x points at their first row
// of the Jacobian.
template <int R>
LRC_INLINE void add_leverages(Lane (&squares)[kAcross], int64_t j, const double* x, int64_t stride, const Update& u) {
  Lane y[R][kAcross];
  product<R>(y, u.inverse + j * u.padded, u.padded, x, stride, smaller(j + R, u.outputs));
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kAcross; ++v) squares[v] = multiply_add(y[r][v], y[r][v], squares[v]);
  }
}

LRC_INLINE void leverages(Lane (&squares)[kAcross], const double* x, int64_t stride, const Update& u) {
#pragma GCC unroll 4
  for (int v = 0; v < kAcross; ++v) squares[v] = Lane{};
  int64_t j = 0;
  for (; j + 2 < u.outputs; j += kTall) add_leverages<kTall>(squares, j, x, stride, u);
  if (j < u.outputs) add_leverages<2>(squares, j, x, stride, u);
}

// The variances of one vector of parameters where a leverage is not safe.
Lane bounded(const Lane& before, const Lane& leverage, const double* x, int64_t stride, int64_t outputs) {
  Lane norm{};
  for (int64_t k = 0; k < outputs; ++k) {
    const auto value = load_bits<Lane>(x + k * stride);
    norm = multiply_add(value, value, norm);
  }
  return kalman_diag::shrunk(before, leverage, norm);
}

LRC_INLINE bool all_safe(const Lane& leverage) {
  bool safe = true;
#pragma GCC unroll 8
  for (int i = 0; i < kLane; ++i) safe &= leverage[i] <= kalman_diag::kSafeLeverage;
  return safe;
}

// delta and p of kAcross vectors of parameters.
void update_tile(double* delta, double* p, const double* score, const double* x, int64_t stride, const Update& u) {
  Lane squares[kAcross], explained[kAcross] = {};
  leverages(squares, x, stride, u);
  for (int64_t k = 0; k < u.outputs; ++k) {
    const Lane w = broadcast(u.w[k]);
#pragma GCC unroll 4
    for (int v = 0; v < kAcross; ++v) {
      explained[v] = multiply_add(w, load_bits<Lane>(x + k * stride + v * kLane), explained[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kAcross; ++v) {
    const auto before = load_bits<Lane>(p + v * kLane), g = load_bits<Lane>(score + v * kLane);
    const Lane leverage = before * squares[v];
    store_bits(delta + v * kLane, kalman_diag::direction(before, g, explained[v]));
    const Lane after = all_safe(leverage) ? kalman_diag::shrunk(before, leverage)
                                          : bounded(before, leverage, x + v * kLane, stride, u.outputs);
    store_bits(p + v * kLane, after);
  }
}

// theta and p of a chunk from delta and the new p in scratch.
void write_step(const Block& block, const Chunk& chunk, const double* delta, const double* p, double rate) {
  with_float_type(block.theta.dtype, [&](auto tag) {
    using S = decltype(tag);
    step_line(start_of<S>(block.new_theta, chunk), block.new_theta.col_stride, start_of<S>(block.theta, chunk),
              block.theta.col_stride, delta, rate, chunk.count);
  });
  const int64_t to = block.new_p.col_stride, from = block.p.col_stride;
  if (block.p.dtype == DType::kFloat64) {
    variance_line(start_of<double>(block.new_p, chunk), to, start_of<double>(block.p, chunk), from, p, chunk.count);
  } else {
    variance_line(start_of<float>(block.new_p, chunk), to, start_of<float>(block.p, chunk), from, p, chunk.count);
  }
}

void gram_run(double* gram, int64_t padded, const Block& block, const Run& run) {
  const int64_t groups = padded / kTall, tiles = groups * (groups + 1) / 2 * (kTall / kWide);
  const bool resident = padded <= kResident;
  Lane sums[kResidentTiles * kTall * kWide] = {};
  for (int64_t i = 0; i < kalman_diag::gram_rows(padded) * run.chunk; ++i)
    run.scratch[i] = 0.0;  // the rows that nothing fills
  for_each_chunk(run, [&](const Chunk& chunk) {
    const double* const p = read_chunk(block, chunk, padded);
    for_each_tile(padded, [&](int64_t j, int64_t k, int64_t index) {
      ask_ahead(block.jac, chunk, index, tiles);
      Lane* const tile = sums + (resident ? index * kTall * kWide : 0);
      const double* const left = chunk.scratch + j * chunk.stride;
      const double* const right = chunk.scratch + k * chunk.stride;
      j == k ? gram_tile<true>(tile, left, right, p, chunk.stride, chunk.padded)
             : gram_tile<false>(tile, left, right, p, chunk.stride, chunk.padded);
      if (!resident) reduce_tile(gram + j * padded + k, padded, tile);
    });
  });
  if (!resident) return;
  for_each_tile(padded, [&](int64_t j, int64_t k, int64_t index) {
    reduce_tile(gram + j * padded + k, padded, sums + index * kTall * kWide);
  });
}

void update_run(const Update& update, const Block& block, const Run& run) {
  double* const p = run.scratch + update.padded * run.chunk;
  double* const score = p + run.chunk;
  double* const delta = score + run.chunk;
  for_each_chunk(run, [&](const Chunk& chunk) {
    read_rows(chunk.scratch, block.jac, chunk);
    read_row(p, block.p, 0, chunk);
    read_row(score, block.score, 0, chunk);
    for (int64_t i = 0; i < chunk.count; i += kAcross * kLane) {
      ask_ahead(block.jac, chunk, i / (kAcross * kLane), chunk.padded / (kAcross * kLane));
      update_tile(delta + i, p + i, score + i, chunk.scratch + i, chunk.stride, update);
    }
    write_step(block, chunk, delta, p, update.rate);
  });
}

void gain_run(const Matrix& k, const double* inverse, int64_t padded, const Block& block, const Run& run) {
  const int64_t m = block.jac.rows;
  double* const y = run.scratch + padded * run.chunk;
  double* const p = y + padded * run.chunk;
  for_each_chunk(run, [&](const Chunk& chunk) {
    read_rows(chunk.scratch, block.jac, chunk);
    read_row(p, block.p, 0, chunk);
    for (int64_t i = 0; i < chunk.count; i += kAcross * kLane) {
      for (int64_t j = 0; j < m; j += kTall) {
        Lane sums[kTall][kAcross];
        product<kTall>(sums, inverse + j * padded, padded, chunk.scratch + i, chunk.stride, m);
        for (int r = 0; r < kTall; ++r) {
          for (int v = 0; v < kAcross; ++v) {
            store_bits(y + (j + r) * chunk.stride + i + v * kLane,
                       kalman_diag::gain_entry(sums[r][v], load_bits<Lane>(p + i + v * kLane)));
          }
        }
      }
    }
    with_float_type(k.dtype, [&](auto tag) {
      using S = decltype(tag);
      for (int64_t i = 0; i < chunk.count; ++i) {
        S* row = k.as<S>() + (chunk.begin + i) * k.row_stride;
        for (int64_t j = 0; j < m; ++j) row[j * k.col_stride] = Store<S>::from(y[j * chunk.stride + i]);
      }
    });
  });
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const kalman_diag::Level kalman_diag::Level::LRC_LEVEL = {LRC_LEVEL::gram_run, LRC_LEVEL::update_run,
                                                                    LRC_LEVEL::gain_run};

}  // namespace lowrank
