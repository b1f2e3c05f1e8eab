#include "lowrank_core/gemm.h"

#include <pybind11/stl.h>

#include "lowrank_core/dense.h"
#include "lowrank_core/newton_schulz.h"

#include "kernel.h"
#include "precision.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

std::string dims(const Matrix& m) { return "[" + std::to_string(m.rows) + ", " + std::to_string(m.cols) + "]"; }

void batched_gemm(const WriteArray& c, const ReadArray& a, const ReadArray& b, double alpha, double beta,
                  const std::string& precision) {
  const int64_t count = c.view.batch();
  LRC_CHECK(a.view.batch() == count && b.view.batch() == count, "gemm: c, a and b must have the same leading size");
  const GemmOptions options{alpha, beta, math_of(precision)};
  for (int64_t i = 0; i < count; ++i) {
    const Matrix out = c.view.matrix(i), left = a.view.matrix(i), right = b.view.matrix(i);
    LRC_CHECK(
        left.cols == right.rows && out.rows == left.rows && out.cols == right.cols,
        "gemm: the shapes must be [m, n] = [m, k] [k, n], got " + dims(out) + " = " + dims(left) + " " + dims(right));
    gemm(out, left, right, options);
  }
}

void bind_convert(const WriteArray& to, const ReadArray& from) {
  LRC_CHECK(to.view.rank == 2 && from.view.rank == 2, "convert: `to` and `from_` must be matrices");
  const Matrix out = to.view.matrix(), in = from.view.matrix();
  LRC_CHECK(out.rows == in.rows && out.cols == in.cols, "convert: `from_` must be " + dims(out) + ", got " + dims(in));
  copy(out, in);
}

void bind_newton_schulz(const std::vector<WriteArray>& to, const std::vector<ReadArray>& from,
                        const std::array<double, 3>& coefficients, int steps, double eps) {
  LRC_CHECK(to.size() == from.size(), "newton_schulz: `to` and `from_` must be of one length");
  std::vector<NewtonSchulzJob> jobs;
  for (size_t k = 0; k < to.size(); ++k) {
    const int64_t count = to[k].view.batch();
    LRC_CHECK(from[k].view.batch() == count, "newton_schulz: `to` and `from_` must have the same leading size");
    for (int64_t i = 0; i < count; ++i) {
      const Matrix out = to[k].view.matrix(i), in = from[k].view.matrix(i);
      LRC_CHECK(out.rows == in.rows && out.cols == in.cols,
                "newton_schulz: `from_` must be " + dims(out) + ", got " + dims(in));
      LRC_CHECK((out.dtype == DType::kFloat32 || out.dtype == DType::kFloat64) && is_float(in.dtype) &&
                    (out.col_stride == 1 || out.cols <= 1),
                "newton_schulz: `to` must be float32 or float64 with rows along memory");
      jobs.push_back({out, in});
    }
  }
  newton_schulz(jobs, {coefficients, steps, eps});
}

}  // namespace

void register_gemm(py::module_& module) {
  kernel(module, "gemm", &batched_gemm, py::arg("c"), py::arg("a"), py::arg("b"), py::kw_only(), py::arg("alpha") = 1.0,
         py::arg("beta") = 0.0, py::arg("precision") = "highest",
         "c <- alpha a b + beta c for (batches of) matrices of any strides.");
  kernel(module, "newton_schulz", &bind_newton_schulz, py::arg("to"), py::arg("from_"), py::kw_only(),
         py::arg("coefficients"), py::arg("steps"), py::arg("eps"),
         "to <- the nearest orthogonal matrices, roughly, of a list of (batches of) matrices.");
  kernel(module, "convert", &bind_convert, py::arg("to"), py::arg("from_"),
         "to <- from_, a matrix of another floating dtype, rounded once.");
}

}  // namespace lowrank
