// A step of weights that are not projected: moments, their storage and the weight in one pass.
#include "subspace_step/level.h"

#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/philox.h"

namespace lowrank::LRC_LEVEL {
namespace {

using namespace subspace_step;

// Elements that wait for their roots. The fewer, the less memory waits for arithmetic; codecs take no part of a block.
constexpr int64_t kRun = blockwise::kBlock;

template <class T>
LoopFactors<T> loop_factors(const PlainJob& job, const PlainParams& p) {
  return {.toward = T(1.0 - p.beta1),
          .beta2 = T(p.beta2),
          .rest2 = T(1.0 - p.beta2),
          .root2 = T(job.root2),
          .eps = T(p.eps),
          .keep = T(keep_factor(p.lr, p.weight_decay)),
          .step = T(p.lr / job.correction1),
          .gain = T(p.scale / job.correction1)};
}

template <bool kFused, class T, class G>
void advance(const LoopFactors<T>& f, T sign, const G* g, T* first, T* second, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T value = sign * T(to_float(g[i]));
    first[i] = loop_first<kFused>(f, first[i], value);
    second[i] = loop_second<kFused>(f, second[i], value);
  }
}

// The moments of `count` elements from `begin` on, which stand at `first` and `second`.
template <class T>
void advance_run(const PlainJob& job, const PlainParams& p, const LoopFactors<T>& f, T* first, T* second, int64_t begin,
                 int64_t count) {
  const T sign = p.maximize ? T(-1) : T(1);
  with_float_type(job.g.dtype, [&](auto tag) {
    const auto* g = static_cast<const decltype(tag)*>(job.g.data) + begin;
    p.fused ? advance<true>(f, sign, g, first, second, count) : advance<false>(f, sign, g, first, second, count);
  });
}

template <class T>
void take_roots(Roots roots, const T* from, T* to, int64_t count) {
  if (roots == Roots::kMkl) return mkl_roots<T>()(count, from, to);
  for (int64_t i = 0; i < count; ++i) to[i] = root(from[i]);
}

template <class T, class W>
void write(W* w, const LoopFactors<T>& f, const T* first, const T* roots, int64_t count) {
  for (int64_t i = 0; i < count; ++i) w[i] = Store<W>::from(loop_weight(f, T(to_float(w[i])), first[i], roots[i]));
}

void write_stochastic(bfloat16* w, const PlainJob& job, const LoopFactors<float>& f, const float* first,
                      const float* roots, int64_t begin, int64_t count) {
  uint32_t words[kRun];
  draw_words(words, count, job.seed, weight_draw(0, begin, 1, job.w.size, false, job.step));
  for (int64_t i = 0; i < count; ++i) {
    w[i] = to_bfloat16(loop_weight(f, to_float(w[i]), first[i], roots[i]), words[i]);
  }
}

template <class T>
void write_run(const PlainJob& job, const PlainParams& p, const LoopFactors<T>& f, const T* first, const T* roots,
               int64_t begin, int64_t count) {
  with_float_type(job.w.dtype, [&](auto tag) {
    using W = decltype(tag);
    W* const w = static_cast<W*>(job.w.data) + begin;
    if constexpr (std::is_same_v<W, bfloat16> && std::is_same_v<T, float>) {
      if (p.stochastic) return write_stochastic(w, job, f, first, roots, begin, count);
    }
    write(w, f, first, roots, count);
  });
}

// Moves the moments of elements [begin, begin + count), count <= kRun; put(first, roots) says what becomes of them.
template <class T, class Put>
void step_run(const PlainJob& job, const PlainParams& p, const LoopFactors<T>& f, int64_t begin, int64_t count,
              const Put& put) {
  T roots[kRun];
  if (std::is_same_v<T, double> || job.first.storage == Storage::kWork) {
    T* const first = static_cast<T*>(job.first.values) + begin;
    T* const second = static_cast<T*>(job.second.values) + begin;
    advance_run(job, p, f, first, second, begin, count);
    take_roots(p.roots, second, roots, count);
    return put(first, roots);
  }
  if constexpr (std::is_same_v<T, float>) {
    const MomentLevel& codecs = MomentLevel::LRC_LEVEL;
    float first[kRun], second[kRun];
    codecs.decode(first, job.first, begin, begin + count, false);
    codecs.decode(second, job.second, begin, begin + count, true);
    advance_run(job, p, f, first, second, begin, count);
    take_roots(p.roots, second, roots, count);
    codecs.encode(job.first, first, begin, begin + count, job.w.size, false, job.seed, job.step);
    codecs.encode(job.second, second, begin, begin + count, job.w.size, true, job.seed, job.step);
    put(first, roots);
  }
}

template <class T>
void step_as(const PlainJob& job, const PlainParams& p, int64_t begin, int64_t end) {
  const auto f = loop_factors<T>(job, p);
  const OneMklThread one;
  for (int64_t i = begin; i < end; i += kRun) {
    const int64_t count = smaller(kRun, end - i);
    step_run(job, p, f, i, count,
             [&](const T* first, const T* roots) { write_run(job, p, f, first, roots, i, count); });
  }
}

template <class T>
void direct_as(const PlainJob& job, const PlainParams& p, int64_t begin, int64_t end) {
  const auto f = loop_factors<T>(job, p);
  const OneMklThread one;
  for (int64_t i = begin; i < end; i += kRun) {
    const int64_t count = smaller(kRun, end - i);
    step_run(job, p, f, i, count, [&](const T* first, const T* roots) {
      T* const to = static_cast<T*>(job.w.data) + i;
      for (int64_t j = 0; j < count; ++j) to[j] = loop_direction(f, first[j], roots[j]);
    });
  }
}

void step(const PlainJob& job, const PlainParams& p, int64_t begin, int64_t end) {
  job.w.dtype == DType::kFloat64 ? step_as<double>(job, p, begin, end) : step_as<float>(job, p, begin, end);
}

void direct(const PlainJob& job, const PlainParams& p, int64_t begin, int64_t end) {
  job.w.dtype == DType::kFloat64 ? direct_as<double>(job, p, begin, end) : direct_as<float>(job, p, begin, end);
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const subspace_step::PlainLevel subspace_step::PlainLevel::LRC_LEVEL = {.step = LRC_LEVEL::step,
                                                                                  .direct = LRC_LEVEL::direct};

}  // namespace lowrank
