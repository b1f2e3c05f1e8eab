// Weights that are not projected, the check of gradients and the counts of steps.
#include "lowrank_core/subspace_step_plain.h"

#include <pybind11/stl.h>

#include "register.h"
#include "subspace_step_moments.h"
#include "subspace_step_roots.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using subspace_step::PlainJob;
using subspace_step::PlainParams;
using subspace_step::Rule;
using subspace_step::Run;

Run run_of(const View& view, const char* argument) {
  check_run(view, argument);
  expect_step(is_float(view.dtype), argument);
  return {view.data, view.dtype, view.size()};
}

PlainJob plain_job(const View& w, const View& g, const Moments& moments, size_t i) {
  PlainJob job{};
  job.w = run_of(w, "params");
  job.g = run_of(g, "grads");
  expect_step(job.g.size == job.w.size, "grads");
  const DType work = job.w.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  moments.check_runs(i);
  job.first = moments.of_first(i, job.w.size, work);
  job.second = moments.of_second(i, job.w.size, work);
  expect_step(job.first.storage == job.second.storage, "exp_avg_sq");
  return job;
}

void bind_plain(const Writes& params, const Reads& grads, const Writes& first, const Writes& first_scales,
                const Writes& second, const Writes& second_scales,
                const std::vector<std::pair<double, double>>& corrections, const std::vector<int64_t>& steps,
                const std::vector<uint64_t>& seeds, std::pair<double, double> betas, double eps, double lr,
                double weight_decay, bool maximize, bool stochastic, bool fused, const std::string& roots) {
  const size_t count = params.size();
  expect_step(grads.size() == count && corrections.size() == count && steps.size() == count && seeds.size() == count,
              "params");
  const Moments moments{first, first_scales, second, second_scales};
  moments.check(count, Rule::kAdam);
  std::vector<PlainJob> jobs;
  for (size_t i = 0; i < count; ++i) {
    jobs.push_back(plain_job(params[i].view, grads[i].view, moments, i));
    std::tie(jobs[i].correction1, jobs[i].root2) = corrections[i];
    jobs[i].step = steps[i];
    jobs[i].seed = seeds[i];
  }
  subspace_step::plain_cpu(jobs, {.beta1 = betas.first,
                                  .beta2 = betas.second,
                                  .eps = eps,
                                  .lr = lr,
                                  .weight_decay = weight_decay,
                                  .maximize = maximize,
                                  .stochastic = stochastic,
                                  .fused = fused,
                                  .roots = roots_of(roots)});
}

std::vector<int64_t> bind_nonfinite(const Reads& arrays) {
  std::vector<Run> runs;
  for (const ReadArray& array : arrays) runs.push_back(run_of(array.view, "arrays"));
  return subspace_step::nonfinite_cpu(runs);
}

std::vector<double> bind_norms(const Reads& arrays) {
  std::vector<Matrix> matrices;
  for (const ReadArray& array : arrays) matrices.push_back(expect_step.matrix(array.view, "arrays"));
  return subspace_step::norms_cpu(matrices);
}

void bind_count(const Writes& counts) {
  for (const WriteArray& count : counts) {
    expect_step(count.view.size() == 1 && count.view.dtype == DType::kFloat32, "counts");
    *static_cast<float*>(count.view.data) += 1.0f;
  }
}

}  // namespace

void register_subspace_step_plain(py::module_& module) {
  using namespace py::literals;
  kernel(module, "adamw_step", &bind_plain, "params"_a, "grads"_a, "exp_avg"_a, "exp_avg_scales"_a, "exp_avg_sq"_a,
         "exp_avg_sq_scales"_a, "corrections"_a, "steps"_a, "seeds"_a, py::kw_only(), "betas"_a, "eps"_a, "lr"_a,
         "weight_decay"_a, "maximize"_a, "stochastic"_a, "fused"_a, "roots"_a,
         "AdamW with a list of weights that are not projected, rounded as torch's loop rounds.");
  kernel(module, "nonfinite", &bind_nonfinite, "arrays"_a, "The numbers of the contiguous arrays with inf or nan.");
  kernel(module, "norms", &bind_norms, "arrays"_a, "The Frobenius norm of each matrix.");
  kernel(module, "count_step", &bind_count, "counts"_a, "Adds one to each count of steps, float32 of one element.");
}

}  // namespace lowrank
