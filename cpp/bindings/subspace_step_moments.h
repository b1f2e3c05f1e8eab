// subspace_step_moments: the moments of a list of weights, as arguments of a kernel.
#pragma once

#include <string>
#include <vector>

#include "expect.h"
#include "kernel.h"
#include "lowrank_core/subspace_step.h"

namespace lowrank {

using Reads = std::vector<ReadArray>;
using Writes = std::vector<WriteArray>;

constexpr Expect expect_step{"subspace_step_"};

// Of `size` elements that are stepped in the dtype `work`.
inline subspace_step::Moment moment_of(const View& values, const WriteArray* scales, int64_t size, DType work,
                                       bool second, const char* argument) {
  expect_step(values.contiguous() && values.size() == size, argument);
  using subspace_step::Storage;
  subspace_step::Moment moment{Storage::kWork, values.data, nullptr};
  if (values.dtype == work) return moment;
  expect_step(work == DType::kFloat32, argument);
  if (values.dtype == DType::kBFloat16) {
    moment.storage = Storage::kBFloat16;
    return moment;
  }
  expect_step(values.dtype == (second ? DType::kUInt8 : DType::kInt8) && scales, argument);
  expect_step(scales->view.contiguous() && scales->view.dtype == DType::kFloat32 &&
                  scales->view.size() == blockwise::blocks(values.size()),
              argument);
  moment.storage = Storage::kBlocks;
  moment.scales = static_cast<float*>(scales->view.data);
  return moment;
}

// An ArrayError: the caller may have another way for such an array.
inline void check_run(const View& view, const char* argument) {
  if (view.contiguous()) return;
  throw ArrayError(std::string(expect_step.op) + ": `" + argument +
                   "` must be contiguous, got other strides; clone it");
}

// Moments by lists: of a rule that has none, or no second one, `first` or `second` is empty; scales are empty but for
// 8-bit codes.
struct Moments {
  const Writes &first, &first_scales, &second, &second_scales;

  subspace_step::Moment of_first(size_t i, int64_t size, DType work) const {
    if (first.empty()) return {};
    return moment_of(first[i].view, first_scales.empty() ? nullptr : &first_scales[i], size, work, false, "exp_avg");
  }
  subspace_step::Moment of_second(size_t i, int64_t size, DType work) const {
    if (second.empty()) return {};
    const WriteArray* scales = second_scales.empty() ? nullptr : &second_scales[i];
    return moment_of(second[i].view, scales, size, work, true, "exp_avg_sq");
  }
  void check_runs(size_t i) const {
    for (const Writes* list : {&first, &first_scales, &second, &second_scales}) {
      if (!list->empty()) check_run((*list)[i].view, "exp_avg");
    }
  }
  void check(size_t count, subspace_step::Rule rule) const {
    const auto fits = [&](const Writes& list) { return list.empty() || list.size() == count; };
    expect_step(first.size() == (subspace_step::has_first(rule) ? count : 0) && fits(first_scales), "exp_avg");
    expect_step(fits(second) && fits(second_scales) && (!subspace_step::has_second(rule) || second.size() == count),
                "exp_avg_sq");
  }
};

}  // namespace lowrank
