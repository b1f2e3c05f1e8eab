#include "lowrank_core/newfamily.h"

#include "caster.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

void bind(const WriteArray& out, const ReadArray& x) {
  for (const View* view : {&out.view, &x.view}) {
    require_cpu(*view, "out and x");
    LRC_CHECK(view->dtype == DType::kFloat32, "newfamily: the arrays must be float32");
    LRC_CHECK(view->contiguous(), "newfamily: the arrays must be contiguous");
  }
  LRC_CHECK(out.view.size() == x.view.size(), "newfamily: `out` must have the size of `x`");
  newfamily::newfamily_cpu(out.view, x.view);
}

}  // namespace

void register_newfamily(py::module_& module) {
  module.def("newfamily", &bind, py::arg("out"), py::arg("x"), py::call_guard<py::gil_scoped_release>(),
             "The formula of `x` into out.");
}

}  // namespace lowrank
