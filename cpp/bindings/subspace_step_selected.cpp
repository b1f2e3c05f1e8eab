// Weights of which some lines are stepped by Adam, and the rest by its sign.
#include "lowrank_core/subspace_step_selected.h"

#include <pybind11/stl.h>

#include "register.h"
#include "subspace_step_moments.h"
#include "subspace_step_roots.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using subspace_step::Rule;
using subspace_step::SelectedJob;

// Whether they ascend, from 0 on and below `size`.
bool are_lines(const int64_t* lines, int64_t count, int64_t size) {
  int64_t least = 0;
  for (int64_t k = 0; k < count; ++k) {
    if (lines[k] < least || lines[k] >= size) return false;
    least = lines[k] + 1;
  }
  return true;
}

SelectedJob job_of(const View& w, const View& g, const View& lines, bool rows, const Moments& moments, size_t i) {
  SelectedJob job{};
  job.w = expect_step.matrix(w, "params");
  job.g = expect_step.matrix(g, "grads");
  expect_step(job.w.rows == job.g.rows && job.w.cols == job.g.cols, "grads");
  expect_step(lines.rank == 1 && lines.contiguous() && lines.dtype == DType::kInt64, "lines");
  job.lines = static_cast<const int64_t*>(lines.data);
  job.count = lines.size();
  job.rows = rows;
  expect_step(are_lines(job.lines, job.count, rows ? job.w.rows : job.w.cols), "lines");
  const DType work = job.w.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const int64_t size = job.count * (rows ? job.w.cols : job.w.rows);
  job.first = moments.of_first(i, size, work);
  job.second = moments.of_second(i, size, work);
  expect_step(job.first.storage == job.second.storage, "exp_avg_sq");
  return job;
}

void bind_selected(const Writes& params, const Reads& grads, const Reads& lines, const std::vector<bool>& rows,
                   const Writes& first, const Writes& first_scales, const Writes& second, const Writes& second_scales,
                   const std::vector<std::pair<double, double>>& corrections, const std::vector<int64_t>& steps,
                   const std::vector<uint64_t>& seeds, std::pair<double, double> betas, double eps, double lr,
                   double weight_decay, double scale, double sign_scale, bool maximize, bool stochastic, bool fused,
                   const std::string& roots) {
  const size_t count = params.size();
  expect_step(grads.size() == count && lines.size() == count && rows.size() == count, "params");
  expect_step(corrections.size() == count && steps.size() == count && seeds.size() == count, "steps");
  const Moments moments{first, first_scales, second, second_scales};
  moments.check(count, Rule::kAdam);
  std::vector<SelectedJob> jobs;
  for (size_t i = 0; i < count; ++i) {
    jobs.push_back(job_of(params[i].view, grads[i].view, lines[i].view, rows[i], moments, i));
    std::tie(jobs[i].correction1, jobs[i].root2) = corrections[i];
    jobs[i].step = steps[i];
    jobs[i].seed = seeds[i];
  }
  subspace_step::selected_cpu(jobs, {.adam = {.beta1 = betas.first,
                                              .beta2 = betas.second,
                                              .eps = eps,
                                              .lr = lr,
                                              .weight_decay = weight_decay,
                                              .scale = scale,
                                              .maximize = maximize,
                                              .stochastic = stochastic,
                                              .fused = fused,
                                              .roots = roots_of(roots)},
                                     .sign_scale = sign_scale});
}

}  // namespace

void register_subspace_step_selected(py::module_& module) {
  using namespace py::literals;
  kernel(module, "selected_step", &bind_selected, "params"_a, "grads"_a, "lines"_a, "rows"_a, "exp_avg"_a,
         "exp_avg_scales"_a, "exp_avg_sq"_a, "exp_avg_sq_scales"_a, "corrections"_a, "steps"_a, "seeds"_a,
         py::kw_only(), "betas"_a, "eps"_a, "lr"_a, "weight_decay"_a, "scale"_a, "sign_scale"_a, "maximize"_a,
         "stochastic"_a, "fused"_a, "roots"_a,
         "Adam of some rows or columns of each of a list of weights, and the sign of the gradient elsewhere.");
}

}  // namespace lowrank
