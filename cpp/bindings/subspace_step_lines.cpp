// Weights that step along their gradient with balanced lines.
#include "lowrank_core/subspace_step_lines.h"

#include <pybind11/stl.h>

#include "register.h"
#include "subspace_step_moments.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using subspace_step::Lines;
using subspace_step::LinesJob;

Lines lines_of(const std::string& lines) {
  if (lines == "none") return Lines::kNone;
  if (lines == "rows") return Lines::kRows;
  if (lines == "columns") return Lines::kColumns;
  expect_step(lines == "both", "lines");
  return Lines::kBoth;
}

void bind_lines(const Writes& params, const Reads& grads, const std::vector<double>& scales,
                const std::vector<int64_t>& steps, const std::vector<uint64_t>& seeds, const std::string& lines,
                int iterations, double lr, double weight_decay, bool maximize, bool stochastic) {
  const size_t count = params.size();
  expect_step(grads.size() == count && scales.size() == count && steps.size() == count && seeds.size() == count,
              "params");
  expect_step(iterations >= 1, "iterations");
  std::vector<LinesJob> jobs;
  for (size_t i = 0; i < count; ++i) {
    const Matrix w = expect_step.matrix(params[i].view, "params"), g = expect_step.matrix(grads[i].view, "grads");
    expect_step(w.rows == g.rows && w.cols == g.cols && (g.col_stride == 1 || g.cols <= 1), "grads");
    expect_step(w.dtype != DType::kFloat64 && g.dtype != DType::kFloat64, "params");
    jobs.push_back({w, g, scales[i], steps[i], seeds[i]});
  }
  subspace_step::lines_cpu(jobs, {.lines = lines_of(lines),
                                  .iterations = iterations,
                                  .lr = lr,
                                  .weight_decay = weight_decay,
                                  .maximize = maximize,
                                  .stochastic = stochastic});
}

}  // namespace

void register_subspace_step_lines(py::module_& module) {
  using namespace py::literals;
  kernel(module, "lines_step", &bind_lines, "params"_a, "grads"_a, "scales"_a, "steps"_a, "seeds"_a, py::kw_only(),
         "lines"_a, "iterations"_a, "lr"_a, "weight_decay"_a, "maximize"_a, "stochastic"_a,
         "A list of weights along their gradients, whose rows or columns have a root mean square of 1.");
}

}  // namespace lowrank
