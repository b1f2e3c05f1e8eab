// The start of Newton and Schulz' iteration.
#include "core/newton_schulz_level.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

template <class T>
LRC_INLINE void put(T* to, const Vec<accumulator_t<T>>& values) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    store_bits(to, upper_halves(round_to_bfloat16(values)));
  } else {
    static_assert(std::is_same_v<T, accumulator_t<T>>);
    store_bits(to, values);
  }
}

template <class T, class S>
void divide_row(T* to, const S* from, int64_t step, int64_t n, accumulator_t<T> divisor) {
  using Acc = accumulator_t<T>;
  int64_t j = 0;
  if (step == 1) {
    for (; j + kLanes<Acc> <= n; j += kLanes<Acc>) put(to + j, load<Acc>(from + j) / broadcast(divisor));
  }
  for (; j < n; ++j) to[j] = Store<T>::from(Acc(to_float(from[j * step])) / divisor);
}

template <class T>
void divide_rows(const Matrix& to, const Matrix& from, double divisor, int64_t begin, int64_t end) {
  with_float_type(from.dtype, [&](auto tag) {
    using S = decltype(tag);
    for (int64_t i = begin; i < end; ++i) {
      const S* const row = from.as<S>() + i * from.row_stride;
      divide_row(to.as<T>() + i * to.row_stride, row, from.col_stride, to.cols, accumulator_t<T>(divisor));
    }
  });
}

void divide(const Matrix& to, const Matrix& from, double divisor, int64_t begin, int64_t end) {
  if (to.dtype == DType::kFloat64) return divide_rows<double>(to, from, divisor, begin, end);
  if (to.dtype == DType::kBFloat16) return divide_rows<bfloat16>(to, from, divisor, begin, end);
  divide_rows<float>(to, from, divisor, begin, end);
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const NewtonSchulzLevel NewtonSchulzLevel::LRC_LEVEL = {.divide = LRC_LEVEL::divide};

}  // namespace lowrank
