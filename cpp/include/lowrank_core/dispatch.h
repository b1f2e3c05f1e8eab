// dispatch: from a dtype to the C++ type that it stands for.
#pragma once

#include "lowrank_core/view.h"

namespace lowrank {

// Calls f with a value of the type that a floating-point dtype stands for. Of the others, which are taken for float32,
// nobody checks here: files of every instruction-set level use this, and leave no message behind.
template <class F>
LRC_INLINE auto with_float_type(DType dtype, const F& f) {
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

template <class F>
auto with_checked_float_type(DType dtype, const F& f) {
  LRC_CHECK(is_float(dtype), std::string("array: the dtype must be a floating-point one, got ") + name(dtype));
  return with_float_type(dtype, f);
}

// With one of the type that an array of this dtype is computed in.
template <class F>
LRC_INLINE auto with_work_type(DType dtype, const F& f) {
  return dtype == DType::kFloat64 ? f(double{}) : f(float{});
}

}  // namespace lowrank
