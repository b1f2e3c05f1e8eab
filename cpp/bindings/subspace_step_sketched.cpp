// Adafactor with a sketched momentum.
#include "lowrank_core/subspace_step_sketched.h"

#include <pybind11/stl.h>

#include "precision.h"
#include "register.h"
#include "subspace_step_moments.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using subspace_step::FactoredJob;
using subspace_step::Rule;
using subspace_step::SketchJob;
using subspace_step::SketchParams;

constexpr Expect expect = expect_step;

float* means_of(const View& means, int64_t size, const char* argument) {
  expect(means.contiguous() && means.size() == size && means.dtype == DType::kFloat32, argument);
  return static_cast<float*>(means.data);
}

// Turned so that the basis is on the left.
SketchJob sketch_job(const View& w, const View& g, const View& basis, const View& low, bool right) {
  const auto turned = [&](const View& view, const char* argument) {
    const Matrix m = expect.matrix(view, argument);
    return right ? m.transposed() : m;
  };
  SketchJob job{};
  job.w = turned(w, "params");
  job.g = turned(g, "grads");
  job.basis = expect.matrix(basis, "bases");
  job.low = turned(low, "low");
  job.transposed = right;
  expect(job.w.rows == job.g.rows && job.w.cols == job.g.cols, "grads");
  const DType work = job.w.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  expect(low.contiguous() && job.low.dtype == work && job.low.cols == job.g.cols, "low");
  expect(job.basis.rows == job.g.rows && job.basis.cols == job.low.rows, "bases");
  return job;
}

void bind_sketched(const Writes& params, const Reads& grads, const Reads& bases, const Writes& low, const Writes& first,
                   const Writes& first_scales, const Writes& row_means, const Writes& col_means,
                   const std::vector<bool>& right, const std::vector<int64_t>& steps,
                   const std::vector<uint64_t>& seeds, const std::vector<double>& decays, double beta1, double eps,
                   double threshold, double lr, double weight_decay, bool maximize, bool stochastic,
                   const std::string& precision) {
  const size_t count = params.size();
  for (const size_t size : {grads.size(), bases.size(), low.size(), row_means.size(), col_means.size(), right.size(),
                            steps.size(), seeds.size(), decays.size()}) {
    expect(size == count, "params");
  }
  const Writes none;
  const Moments moments{first, first_scales, none, none};
  moments.check(count, Rule::kAverage);
  std::vector<SketchJob> jobs;
  for (size_t i = 0; i < count; ++i) {
    SketchJob job = sketch_job(params[i].view, grads[i].view, bases[i].view, low[i].view, right[i]);
    const View& w = params[i].view;
    job.row_means = means_of(row_means[i].view, w.shape[0], "row_means");
    job.col_means = means_of(col_means[i].view, w.shape[1], "col_means");
    job.first = moments.of_first(i, job.low.rows * job.low.cols, job.low.dtype);
    job.step = steps[i];
    job.seed = seeds[i];
    job.decay = decays[i];
    jobs.push_back(job);
  }
  SketchParams p;
  p.step = {.rule = Rule::kAverage,
            .beta1 = beta1,
            .eps = eps,
            .lr = lr,
            .weight_decay = weight_decay,
            .maximize = maximize,
            .stochastic = stochastic,
            .math = math_of(precision)};
  p.threshold = threshold;
  subspace_step::sketched_cpu(jobs, p);
}

void bind_factored(const Writes& low, const Writes& row_means, const Writes& row_scales, const Writes& col_means,
                   const Writes& col_scales, const std::vector<int64_t>& steps, const std::vector<uint64_t>& seeds,
                   const std::vector<double>& decays, double eps, double threshold) {
  const size_t count = low.size();
  for (const size_t size : {row_means.size(), col_means.size(), steps.size(), seeds.size(), decays.size()}) {
    expect(size == count, "low");
  }
  for (const Writes* scales : {&row_scales, &col_scales}) expect(scales->empty() || scales->size() == count, "scales");
  const auto means_at = [](const Writes& means, const Writes& scales, size_t i, int64_t size, DType work) {
    return moment_of(means[i].view, scales.empty() ? nullptr : &scales[i], size, work, true, "means");
  };
  std::vector<FactoredJob> jobs;
  for (size_t i = 0; i < count; ++i) {
    const Matrix x = expect.matrix(low[i].view, "low");
    expect(low[i].view.contiguous() && (x.dtype == DType::kFloat32 || x.dtype == DType::kFloat64), "low");
    jobs.push_back({.low = x,
                    .rows = means_at(row_means, row_scales, i, x.rows, x.dtype),
                    .cols = means_at(col_means, col_scales, i, x.cols, x.dtype),
                    .step = steps[i],
                    .seed = seeds[i],
                    .decay = decays[i]});
  }
  subspace_step::factored_cpu(jobs, eps, threshold);
}

}  // namespace

void register_subspace_step_sketched(py::module_& module) {
  using namespace py::literals;
  kernel(module, "sketched_step", &bind_sketched, "params"_a, "grads"_a, "bases"_a, "low"_a, "exp_avg"_a,
         "exp_avg_scales"_a, "row_means"_a, "col_means"_a, "right"_a, "steps"_a, "seeds"_a, "decays"_a, py::kw_only(),
         "beta1"_a, "eps"_a, "threshold"_a, "lr"_a, "weight_decay"_a, "maximize"_a, "stochastic"_a, "precision"_a,
         "Adafactor with a sketched momentum, for a list of weights.");
  kernel(module, "factored_directions", &bind_factored, "low"_a, "row_means"_a, "row_scales"_a, "col_means"_a,
         "col_scales"_a, "steps"_a, "seeds"_a, "decays"_a, py::kw_only(), "eps"_a, "threshold"_a,
         "Adafactor's directions of low-rank gradients, in their place.");
}

}  // namespace lowrank
