// The rows of a weight along directions of some of its lines and signs elsewhere.
#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/philox.h"
#include "subspace_step/level.h"

namespace lowrank::LRC_LEVEL {
namespace {

using namespace subspace_step;

constexpr int kRun = 256;  // entries of a row whose direction is held

// Calls body(step) with the distance of neighbours in memory, a constant where they are next to each other.
template <class Body>
void with_step(int64_t step, const Body& body) {
  step == 1 ? body(std::integral_constant<int64_t, 1>()) : body(step);
}

// to[j] <- gain sign(g[j])
template <class T>
void take_signs(const Gradient& from, int64_t row, int64_t col, T gain, T* to, int64_t count) {
  const Matrix& g = from.g;
  with_float_type(g.dtype, [&](auto tag) {
    const auto* const line = g.as<decltype(tag)>() + row * g.row_stride + col * g.col_stride;
    with_step(g.col_stride, [&](auto step) {
      for (int64_t j = 0; j < count; ++j) to[j] = sign(T(to_float(line[j * step]))) * gain;
    });
  });
}

template <bool kFused, class T, class W>
void write_run(const SelectedJob& job, const PlainParams& p, int64_t row, int64_t col, const T* d, int64_t count) {
  const Matrix& w = job.w;
  W* const line = w.as<W>() + row * w.row_stride + col * w.col_stride;
  const T keep = T(keep_factor(p.lr, p.weight_decay)), lr = T(p.lr);
  if constexpr (std::is_same_v<W, bfloat16>) {
    if (p.stochastic) {
      uint32_t words[kRun];
      draw_words(words, count, job.seed, weight_draw(row, col, w.rows, w.cols, false, job.step));
      for (int64_t j = 0; j < count; ++j) {
        W& entry = line[j * w.col_stride];
        entry = to_bfloat16(less_direction<kFused>(keep, to_float(entry), lr, d[j]), words[j]);
      }
      return;
    }
  }
  with_step(w.col_stride, [&](auto step) {
    for (int64_t j = 0; j < count; ++j) {
      W& entry = line[j * step];
      entry = Store<W>::from(less_direction<kFused>(keep, T(to_float(entry)), lr, d[j]));
    }
  });
}

template <bool kFused, class W>
void write_rows(const SelectedJob& job, const SelectedParams& p, int64_t begin, int64_t end, const void* directions) {
  using T = accumulator_t<W>;
  const int64_t n = job.w.cols, width = job.rows ? n : job.count;
  const Gradient gradient{job.g, p.adam.maximize ? -1.0 : 1.0};
  const T gain = T(gradient.sign) * T(p.sign_scale);
  const auto* chosen = static_cast<const T*>(directions);
  T d[kRun];
  for (int64_t i = begin; i < end; ++i) {
    int64_t place = 0;
    for (int64_t col = 0; col < n; col += kRun) {
      const int64_t count = smaller(kRun, n - col);
      if (chosen && job.rows) {
        write_run<kFused, T, W>(job, p.adam, i, col, chosen + col, count);
        continue;
      }
      take_signs(gradient, i, col, gain, d, count);
      for (; chosen && place < width && job.lines[place] < col + count; ++place)
        d[job.lines[place] - col] = chosen[place];
      write_run<kFused, T, W>(job, p.adam, i, col, d, count);
    }
    if (chosen) chosen += width;
  }
}

void write(const SelectedJob& job, const SelectedParams& p, int64_t begin, int64_t end, const void* directions) {
  with_float_type(job.w.dtype, [&](auto tag) {
    using W = decltype(tag);
    p.adam.fused ? write_rows<true, W>(job, p, begin, end, directions)
                 : write_rows<false, W>(job, p, begin, end, directions);
  });
}

template <class T>
void gather_as(const SelectedJob& job, int64_t begin, int64_t end, T* to) {
  const Matrix& g = job.g;
  with_float_type(g.dtype, [&](auto tag) {
    for (int64_t i = begin; i < end; ++i, to += job.count) {
      const auto* const line = g.as<decltype(tag)>() + i * g.row_stride;
      with_step(g.col_stride, [&](auto step) {
        for (int64_t k = 0; k < job.count; ++k) to[k] = T(to_float(line[job.lines[k] * step]));
      });
    }
  });
}

void gather(const SelectedJob& job, int64_t begin, int64_t end, void* to) {
  job.w.dtype == DType::kFloat64 ? gather_as(job, begin, end, static_cast<double*>(to))
                                 : gather_as(job, begin, end, static_cast<float*>(to));
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const subspace_step::SelectedLevel subspace_step::SelectedLevel::LRC_LEVEL = {.write = LRC_LEVEL::write,
                                                                                        .gather = LRC_LEVEL::gather};

}  // namespace lowrank
