#include "lowrank_core/gemm.h"

#include "caster.h"
#include "precision.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

std::string dims(const Matrix& m) { return "[" + std::to_string(m.rows) + ", " + std::to_string(m.cols) + "]"; }

void batched_gemm(const WriteArray& c, const ReadArray& a, const ReadArray& b, double alpha, double beta,
                  const std::string& precision) {
  for (const View* view : {&c.view, &a.view, &b.view}) require_cpu(*view, "c, a and b");
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

}  // namespace

void register_gemm(py::module_& module) {
  module.def("gemm", &batched_gemm, py::arg("c"), py::arg("a"), py::arg("b"), py::kw_only(), py::arg("alpha") = 1.0,
             py::arg("beta") = 0.0, py::arg("precision") = "highest", py::call_guard<py::gil_scoped_release>(),
             "c <- alpha a b + beta c for (batches of) matrices of any strides.");
}

}  // namespace lowrank
