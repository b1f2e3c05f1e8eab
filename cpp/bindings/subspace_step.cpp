#include "lowrank_core/subspace_step.h"

#include <pybind11/stl.h>

#include "expect.h"
#include "kernel.h"
#include "precision.h"
#include "register.h"
#include "subspace_step_moments.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using subspace_step::Job;
using subspace_step::Moment;
using subspace_step::Params;
using subspace_step::Residual;
using subspace_step::Rule;
using subspace_step::Storage;

constexpr Expect expect = expect_step;

Matrix matrix_of(const View& view, bool turned, const char* argument) {
  const Matrix m = expect.matrix(view, argument);
  return turned ? m.transposed() : m;
}

// What both halves of a step need.
Job job_of(const View& low, const View& g, const View& basis, bool right) {
  Job job{};
  job.g = matrix_of(g, right, "grads");
  job.basis = matrix_of(basis, false, "bases");
  job.low = matrix_of(low, right, "low");
  const DType work = job.low.dtype;
  expect(low.contiguous() && (work == DType::kFloat32 || work == DType::kFloat64), "low");
  expect(job.low.rows == job.basis.cols && job.low.cols == job.g.cols, "low");
  expect(job.basis.rows == job.g.rows, "bases");
  job.transposed = right;
  return job;
}

Rule rule_of(const std::string& rule) {
  if (rule == "adam") return Rule::kAdam;
  if (rule == "adabelief") return Rule::kAdaBelief;
  if (rule == "lion") return Rule::kLion;
  if (rule == "given") return Rule::kGiven;
  expect(rule == "momentum", "rule");
  return Rule::kMomentum;
}

Residual residual_of(const std::string& residual) {
  if (residual == "drop") return Residual::kDrop;
  if (residual == "scaled") return Residual::kScaled;
  if (residual == "sign") return Residual::kSign;
  if (residual == "channel") return Residual::kChannel;
  expect(residual == "tensor", "residual");
  return Residual::kTensor;
}

bool bind_project(const Writes& low, const Reads& grads, const Reads& bases, const std::vector<bool>& right,
                  bool maximize, const std::string& precision) {
  expect(low.size() == grads.size() && bases.size() == grads.size() && right.size() == grads.size(), "grads");
  std::vector<Job> jobs;
  for (size_t i = 0; i < grads.size(); ++i) {
    jobs.push_back(job_of(low[i].view, grads[i].view, bases[i].view, right[i]));
  }
  Params params;
  params.maximize = maximize;
  params.math = math_of(precision);
  return subspace_step::project_cpu(jobs, params);
}

// The arrays of a list of weights and what belongs to each.
struct Weights {
  const Writes& params;
  const Reads &grads, &bases;
  const Writes& low;
  Moments moments;
  const Writes& limits;
  const std::vector<bool>& right;
  const std::vector<int64_t>& steps;
  const std::vector<uint64_t>& seeds;

  void check(Rule rule) const {
    const size_t count = params.size();
    expect(grads.size() == count && bases.size() == count && low.size() == count && right.size() == count, "params");
    expect(steps.size() == count && seeds.size() == count && (limits.empty() || limits.size() == count), "steps");
    moments.check(count, rule);
  }

  Job job(size_t i) const {
    Job job = job_of(low[i].view, grads[i].view, bases[i].view, right[i]);
    job.w = matrix_of(params[i].view, right[i], "params");
    expect(job.w.rows == job.g.rows && job.w.cols == job.g.cols, "params");
    expect((job.w.dtype == DType::kFloat64) == (job.low.dtype == DType::kFloat64), "params");
    const int64_t size = job.low.rows * job.low.cols;
    job.first = moments.of_first(i, size, job.low.dtype);
    job.second = moments.of_second(i, size, job.low.dtype);
    expect(moments.second.empty() || job.second.storage == job.first.storage, "exp_avg_sq");
    job.step = steps[i];
    job.seed = seeds[i];
    if (!limits.empty()) {
      expect(limits[i].view.size() == 1 && limits[i].view.dtype == DType::kFloat32, "limits");
      job.limit = static_cast<float*>(limits[i].view.data);
    }
    return job;
  }
};

void update(const Weights& weights, const Params& p) {
  weights.check(p.rule);
  std::vector<Job> jobs;
  for (size_t i = 0; i < weights.params.size(); ++i) jobs.push_back(weights.job(i));
  subspace_step::update_cpu(jobs, p);
}

// Python's arguments by name; nothing here but what they are called inside.
void bind_update(const Writes& params, const Reads& grads, const Reads& bases, const Writes& low, const Writes& first,
                 const Writes& first_scales, const Writes& second, const Writes& second_scales, const Writes& limits,
                 const std::vector<bool>& right, const std::vector<int64_t>& steps, const std::vector<uint64_t>& seeds,
                 const std::string& rule, std::pair<double, double> betas, double eps, double lr, double weight_decay,
                 double scale, const std::string& residual, double residual_scale, double cap, double growth,
                 bool maximize, bool stochastic, const std::string& precision) {
  const Weights weights{.params = params,
                        .grads = grads,
                        .bases = bases,
                        .low = low,
                        .moments = {first, first_scales, second, second_scales},
                        .limits = limits,
                        .right = right,
                        .steps = steps,
                        .seeds = seeds};
  update(weights, {.rule = rule_of(rule),
                   .beta1 = betas.first,
                   .beta2 = betas.second,
                   .eps = eps,
                   .lr = lr,
                   .weight_decay = weight_decay,
                   .scale = scale,
                   .residual = residual_of(residual),
                   .residual_scale = residual_scale,
                   .cap = cap,
                   .growth = growth,
                   .maximize = maximize,
                   .stochastic = stochastic,
                   .math = math_of(precision)});
}

void bind_round(const WriteArray& to, const ReadArray& from, uint64_t seed, int64_t step) {
  const Matrix target = matrix_of(to.view, false, "to"), source = matrix_of(from.view, false, "from");
  expect(target.rows == source.rows && target.cols == source.cols, "from");
  subspace_step::round_cpu(target, source, seed, step);
}

Matrix values_of(const View& values) {
  expect(values.contiguous() && values.dtype == DType::kFloat32, "values");
  return row_major(static_cast<float*>(values.data), 1, values.size());
}

void bind_encode(const WriteArray& codes, const std::optional<WriteArray>& scales, const ReadArray& values, bool second,
                 uint64_t seed, int64_t step) {
  const Matrix from = values_of(values.view);
  const Moment to = moment_of(codes.view, scales ? &*scales : nullptr, from.cols, from.dtype, second, "codes");
  expect(to.storage != Storage::kWork, "codes");
  subspace_step::encode_cpu(to, from.as<float>(), from.cols, second, seed, step);
}

void bind_decode(const WriteArray& values, const WriteArray& codes, const std::optional<WriteArray>& scales,
                 bool second) {
  const Matrix to = values_of(values.view);
  const Moment from = moment_of(codes.view, scales ? &*scales : nullptr, to.cols, to.dtype, second, "codes");
  expect(from.storage != Storage::kWork, "codes");
  subspace_step::decode_cpu(to.as<float>(), from, to.cols, second);
}

}  // namespace

void register_subspace_step(py::module_& module) {
  using namespace py::literals;
  kernel(module, "subspace_project", &bind_project, "low"_a, "grads"_a, "bases"_a, "right"_a, py::kw_only(),
         "maximize"_a = false, "precision"_a = "highest",
         "Low-rank gradients of a list; false if one of them is not finite.");
  kernel(module, "subspace_update", &bind_update, "params"_a, "grads"_a, "bases"_a, "low"_a, "exp_avg"_a,
         "exp_avg_scales"_a, "exp_avg_sq"_a, "exp_avg_sq_scales"_a, "limits"_a, "right"_a, "steps"_a, "seeds"_a,
         py::kw_only(), "rule"_a, "betas"_a, "eps"_a, "lr"_a, "weight_decay"_a, "scale"_a, "residual"_a,
         "residual_scale"_a, "cap"_a, "growth"_a, "maximize"_a, "stochastic"_a, "precision"_a = "highest",
         "Moments and weights of a list, from the low-rank gradients, which it overwrites.");
  kernel(module, "round_stochastic", &bind_round, "to"_a, "from_"_a, py::kw_only(), "seed"_a, "step"_a,
         "Rounds a matrix as a step rounds the weights: bfloat16 stochastically, other dtypes to nearest.");
  kernel(module, "encode_moment", &bind_encode, "codes"_a, "scales"_a, "values"_a, py::kw_only(), "second"_a, "seed"_a,
         "step"_a, "Stores a float32 moment as a step does: in bfloat16 or 8-bit blocks.");
  kernel(module, "decode_moment", &bind_decode, "values"_a, "codes"_a, "scales"_a, py::kw_only(), "second"_a,
         "The float32 values of a stored moment.");
}

}  // namespace lowrank
