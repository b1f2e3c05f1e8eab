#include "lowrank_core/kalman_diag.h"

#include <pybind11/stl.h>

#include "expect.h"
#include "kernel.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using kalman_diag::Block;
using kalman_diag::Outcome;

using Reads = std::vector<ReadArray>;
using Writes = std::vector<WriteArray>;

constexpr Expect expect{"kalman_diag"};

// Arrays of one parameter of the filter.
struct Parameter {
  const View &new_theta, &new_p, &theta, &p, &jac, &score;
};

Block block_of(const Parameter& from) {
  Block block{};
  block.jac = expect.matrix(from.jac, "jac");
  const int64_t n = block.jac.cols;
  block.theta = expect.row(from.theta, n, "theta");
  block.p = expect.row(from.p, n, "p");
  block.score = expect.row(from.score, n, "score");
  block.new_theta = expect.row(from.new_theta, n, "theta");
  block.new_p = expect.row(from.new_p, n, "p");
  expect(block.p.dtype == DType::kFloat32 || block.p.dtype == DType::kFloat64, "p");
  expect(block.new_p.dtype == block.p.dtype, "p");
  expect(block.new_theta.dtype == block.theta.dtype, "theta");
  return block;
}

bool step(const std::vector<Block>& blocks, double lr, double limit) {
  const kalman_diag::Params params{blocks.empty() ? 0 : blocks[0].jac.rows, lr, limit};
  for (const Block& block : blocks) expect(block.jac.rows == params.outputs, "jac");
  return kalman_diag::step_cpu(blocks, params);
}

bool bind_step(const Writes& new_theta, const Writes& new_p, const Reads& theta, const Reads& p, const Reads& jac,
               const Reads& score, double lr, double limit) {
  const size_t count = theta.size();
  expect(new_theta.size() == count && new_p.size() == count && p.size() == count, "theta");
  expect(jac.size() == count && score.size() == count, "jac");
  std::vector<Block> blocks;
  for (size_t i = 0; i < count; ++i) {
    blocks.push_back(
        block_of({new_theta[i].view, new_p[i].view, theta[i].view, p[i].view, jac[i].view, score[i].view}));
  }
  return step(blocks, lr, limit);
}

bool bind_step_in_place(const Writes& theta, const Writes& p, const Reads& jac, const Reads& score, double lr,
                        double limit) {
  const size_t count = theta.size();
  expect(p.size() == count && jac.size() == count && score.size() == count, "theta");
  std::vector<Block> blocks;
  for (size_t i = 0; i < count; ++i) {
    blocks.push_back(block_of({theta[i].view, p[i].view, theta[i].view, p[i].view, jac[i].view, score[i].view}));
  }
  return step(blocks, lr, limit);
}

void bind_gain(const WriteArray& k, const ReadArray& p, const ReadArray& h, const ReadArray& r) {
  const Matrix gain = expect.matrix(k.view, "k"), jac = expect.matrix(h.view, "h");
  const int64_t m = jac.rows;
  expect(gain.rows == jac.cols && gain.cols == m, "k");
  expect(is_float(r.view.dtype) && r.view.rank <= 2, "r");
  for (int i = 0; i < r.view.rank; ++i) expect(r.view.shape[size_t(i)] == m, "r");
  Matrix noise{r.view.data, r.view.dtype, 1, m, 0, r.view.rank == 1 ? r.view.stride[0] : 0};
  if (r.view.rank == 2) noise = r.view.matrix();
  switch (kalman_diag::gain_cpu(gain, expect.row(p.view, jac.cols, "p"), jac, noise, r.view.rank < 2)) {
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
  kernel(module, "kalman_diag_step", &bind_step, "new_theta"_a, "new_p"_a, "theta"_a, "p"_a, "jac"_a, "score"_a,
         py::kw_only(), "lr"_a, "limit"_a,
         "One step over a list; false, with nothing written, where an argument is not finite or a p negative.");
  kernel(module, "kalman_diag_step_", &bind_step_in_place, "theta"_a, "p"_a, "jac"_a, "score"_a, py::kw_only(), "lr"_a,
         "limit"_a, "The same in place.");
  kernel(module, "kalman_diag_gain", &bind_gain, "k"_a, "p"_a, "h"_a, "r"_a,
         "The gain into k [n, m]; r is a number, a diagonal or a matrix.");
}

}  // namespace lowrank
