#include "lowrank_core/newfamily.h"

#include "kernel.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

void bind(const WriteArray& out, const ReadArray& x) {
  for (const View* view : {&out.view, &x.view}) {
    LRC_CHECK(view->dtype == DType::kFloat32, "newfamily: the arrays must be float32");
    LRC_CHECK(view->contiguous(), "newfamily: the arrays must be contiguous");
  }
  LRC_CHECK(out.view.size() == x.view.size(), "newfamily: `out` must have the size of `x`");
  newfamily::newfamily_cpu(out.view, x.view);
}

}  // namespace

void register_newfamily(py::module_& module) {
  kernel(module, "newfamily", &bind, py::arg("out"), py::arg("x"), "The formula of `x` into out.");
}

}  // namespace lowrank
