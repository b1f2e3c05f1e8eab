#include "lowrank_core/kalman_diag.h"

#include <pybind11/stl.h>

#include "caster.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using kalman_diag::Block;
using kalman_diag::Outcome;

using Reads = std::vector<ReadArray>;
using Writes = std::vector<WriteArray>;

// Memory safety only: the operators have checked the contract and worded the refusals.
void expect(bool fits, const char* argument) {
  if (!fits) fail(std::string("kalman_diag: `") + argument + "` has the wrong shape, dtype or length");
}

bool is_float(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

// A vector of n elements as a matrix of one row.
Matrix vector_of(const View& view, int64_t n, const char* argument) {
  require_cpu(view, argument);
  expect(view.rank == 1 && view.shape[0] == n && is_float(view.dtype), argument);
  return {view.data, view.dtype, 1, n, 0, view.stride[0]};
}

Matrix matrix_of(const View& view, const char* argument) {
  require_cpu(view, argument);
  expect(view.rank == 2 && is_float(view.dtype), argument);
  return view.matrix();
}

bool bind_step(const Writes& new_theta, const Writes& new_p, const Reads& theta, const Reads& p, const Reads& jac,
               const Reads& score, double lr, double limit) {
  const size_t count = theta.size();
  expect(new_theta.size() == count && new_p.size() == count && p.size() == count, "theta");
  expect(jac.size() == count && score.size() == count, "jac");
  std::vector<Block> blocks;
  kalman_diag::Params params{0, lr, limit};
  for (size_t i = 0; i < count; ++i) {
    Block block{};
    block.jac = matrix_of(jac[i].view, "jac");
    if (i == 0) params.outputs = block.jac.rows;
    expect(block.jac.rows == params.outputs, "jac");
    const int64_t n = block.jac.cols;
    block.theta = vector_of(theta[i].view, n, "theta");
    block.p = vector_of(p[i].view, n, "p");
    block.score = vector_of(score[i].view, n, "score");
    block.new_theta = vector_of(new_theta[i].view, n, "theta");
    block.new_p = vector_of(new_p[i].view, n, "p");
    expect(block.p.dtype == DType::kFloat32 || block.p.dtype == DType::kFloat64, "p");
    expect(block.new_p.dtype == block.p.dtype, "p");
    expect(block.new_theta.dtype == block.theta.dtype, "theta");
    blocks.push_back(block);
  }
  return kalman_diag::step_cpu(blocks, params);
}

void bind_gain(const WriteArray& k, const ReadArray& p, const ReadArray& h, const ReadArray& r) {
  const Matrix gain = matrix_of(k.view, "k"), jac = matrix_of(h.view, "h");
  const int64_t m = jac.rows;
  expect(gain.rows == jac.cols && gain.cols == m, "k");
  require_cpu(r.view, "r");
  expect(is_float(r.view.dtype) && r.view.rank <= 2, "r");
  for (int i = 0; i < r.view.rank; ++i) expect(r.view.shape[size_t(i)] == m, "r");
  Matrix noise{r.view.data, r.view.dtype, 1, m, 0, r.view.rank == 1 ? r.view.stride[0] : 0};
  if (r.view.rank == 2) noise = r.view.matrix();
  switch (kalman_diag::gain_cpu(gain, vector_of(p.view, jac.cols, "p"), jac, noise, r.view.rank < 2)) {
    case Outcome::kNotFinite:
      throw NotFinite();
    case Outcome::kNotPositive:
      fail(
          "kalman_diag_gain: `r` must be a finite noise that makes H diag(p) Hᵀ + R positive definite, got one that "
          "does not; add to its diagonal");
    case Outcome::kDone:
      return;
  }
}

}  // namespace

void register_kalman_diag(py::module_& module) {
  using namespace py::literals;
  using Release = py::call_guard<py::gil_scoped_release>;
  module.def("kalman_diag_step", &bind_step, "new_theta"_a, "new_p"_a, "theta"_a, "p"_a, "jac"_a, "score"_a,
             py::kw_only(), "lr"_a, "limit"_a, Release(),
             "One step over a list; false, with nothing written, where an argument is not finite or a p negative.");
  module.def("kalman_diag_gain", &bind_gain, "k"_a, "p"_a, "h"_a, "r"_a, Release(),
             "The gain into k [n, m]; r is a number, a diagonal or a matrix.");
}

}  // namespace lowrank
