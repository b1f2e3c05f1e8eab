// lines: what a level reads of a chunk of parameters into scratch, in float64, and writes back.
#pragma once

#include "kalman_diag/level.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/integers.h"
#include "lowrank_core/simd/rows.h"

namespace lowrank::LRC_LEVEL {
namespace {

using kalman_diag::Block;
using kalman_diag::kAlign;
using kalman_diag::Run;

using Lane = Vec<double>;
constexpr int64_t kLane = kLanes<double>;

// Parameters [begin, begin + count) of a block, whose rows in scratch are `stride` apart and padded with zeros.
struct Chunk {
  int64_t begin, count, padded;
  double* scratch;
  int64_t stride;
};

template <class F>
LRC_INLINE void for_each_chunk(const Run& run, const F& f) {
  for (int64_t i = run.begin; i < run.end; i += run.chunk) {
    const int64_t count = smaller(run.chunk, run.end - i);
    f(Chunk{i, count, round_up(count, kAlign), run.scratch, run.chunk});
  }
}

// ---- in and out of scratch ---------------------------------------------------------------------------------------

// A vector's worth of any storage type.
template <class S>
LRC_INLINE Lane lane(const S* from) {
  return load<double>(from);
}

#if defined(__AVX512F__)
// The one instruction, which GCC 12 takes apart into halves.
LRC_INLINE Lane lane(const float* from) { return _mm512_maskz_cvtps_pd(0xFF, load_bits<__m256>(from)); }
#endif

// to[i] <- from[i], and zeros as far as `padded`.
template <class S>
void widen_line(double* to, const S* from, int64_t step, int64_t count, int64_t padded) {
  int64_t i = 0;
  if (step == 1) {
    for (; i + kLane <= count; i += kLane) store_bits(to + i, lane(from + i));
  }
  for (; i < count; ++i) to[i] = double(to_float(from[i * step]));
  for (; i < padded; ++i) to[i] = 0.0;
}

// Row `row` of a matrix, as far as the chunk goes.
void read_row(double* to, const Matrix& from, int64_t row, const Chunk& chunk) {
  with_float_type(from.dtype, [&](auto tag) {
    using S = decltype(tag);
    const S* start = from.as<S>() + row * from.row_stride + chunk.begin * from.col_stride;
    widen_line(to, start, from.col_stride, chunk.count, chunk.padded);
  });
}

void read_rows(double* to, const Matrix& from, const Chunk& chunk) {
  for (int64_t row = 0; row < from.rows; ++row) read_row(to + row * chunk.stride, from, row, chunk);
}

// Asks for part `part` of `parts` of the next chunk's rows while this one is computed: m lines that jump from chunk to
// chunk are more than the hardware follows.
LRC_INLINE void ask_ahead(const Matrix& jac, const Chunk& chunk, int64_t part, int64_t parts) {
  if (jac.col_stride != 1) return;
  const int64_t item = item_size(jac.dtype), bytes = smaller(chunk.count, jac.cols - chunk.begin - chunk.count) * item;
  for (int64_t row = jac.rows * part / parts; row < jac.rows * (part + 1) / parts; ++row) {
    const char* next = jac.as<char>() + (row * jac.row_stride + chunk.begin + chunk.count) * item;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(next + i);
  }
}

// theta <- theta + rate delta, rounded once.
template <class S>
void step_line(S* to, int64_t to_step, const S* from, int64_t from_step, const double* delta, double rate,
               int64_t count) {
  if (to_step == 1 && from_step == 1) {
    for (int64_t i = 0; i < count; ++i)
      to[i] = Store<S>::from(kalman_diag::stepped(double(to_float(from[i])), rate, delta[i]));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    to[i * to_step] = Store<S>::from(kalman_diag::stepped(double(to_float(from[i * from_step])), rate, delta[i]));
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

}  // namespace
}  // namespace lowrank::LRC_LEVEL
