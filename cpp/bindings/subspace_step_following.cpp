// Subspaces that follow the gradient.
#include "lowrank_core/subspace_step_following.h"

#include <pybind11/stl.h>

#include "precision.h"
#include "register.h"
#include "subspace_step_moments.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using subspace_step::FollowJob;

constexpr Expect expect = expect_step;

void bind_follow(const Writes& errors, const Reads& grads, const Writes& bases, const Writes& low, const Writes& first,
                 const Writes& second, const std::vector<bool>& right, const std::vector<int64_t>& steps, double beta1,
                 double beta2, double rho, bool maximize, const std::string& precision) {
  const size_t count = errors.size();
  for (const size_t size :
       {grads.size(), bases.size(), low.size(), first.size(), second.size(), right.size(), steps.size()}) {
    expect(size == count, "errors");
  }
  std::vector<FollowJob> jobs;
  for (size_t i = 0; i < count; ++i) {
    const auto turned = [&](const View& view, const char* argument) {
      const Matrix m = expect.matrix(view, argument);
      return right[i] ? m.transposed() : m;
    };
    const FollowJob job{turned(errors[i].view, "errors"),
                        turned(grads[i].view, "grads"),
                        expect.matrix(bases[i].view, "bases"),
                        turned(low[i].view, "low"),
                        turned(first[i].view, "exp_avg"),
                        turned(second[i].view, "exp_avg_sq"),
                        steps[i]};
    const DType work = job.w.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    expect(job.w.rows == job.g.rows && job.w.cols == job.g.cols && is_float(job.g.dtype), "grads");
    expect(job.w.dtype == work, "errors");
    expect(job.basis.dtype == work && job.basis.rows == job.w.rows && job.basis.cols <= job.basis.rows, "bases");
    for (const auto* of : {&low[i], &first[i], &second[i]}) {
      const Matrix m = turned(of->view, "low");
      expect(m.dtype == work && of->view.contiguous() && m.rows == job.basis.cols && m.cols == job.w.cols, "low");
    }
    expect(job.step >= 1, "steps");
    jobs.push_back(job);
  }
  subspace_step::follow_cpu(jobs, {beta1, beta2, rho, maximize, math_of(precision)});
}

}  // namespace

void register_subspace_step_following(py::module_& module) {
  using namespace py::literals;
  kernel(module, "follow_step", &bind_follow, "errors"_a, "grads"_a, "bases"_a, "low"_a, "exp_avg"_a, "exp_avg_sq"_a,
         "right"_a, "steps"_a, py::kw_only(), "beta1"_a, "beta2"_a, "rho"_a, "maximize"_a, "precision"_a,
         "One power step of subspaces that follow the gradient, for a list of weights.");
}

}  // namespace lowrank
