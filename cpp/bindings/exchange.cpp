#include "exchange.h"

#include <array>
#include <string_view>

namespace py = pybind11;

namespace lowrank {
namespace {

struct Known {
  PyTypeObject* type = nullptr;
  const dlpack::ExchangeApi* api = nullptr;  // null where torch has none
};

std::string_view text_of(PyTypeObject* type, const char* attribute) {
  const py::object text = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(type)).attr(attribute);
  return PyUnicode_Check(text.ptr()) ? PyUnicode_AsUTF8(text.ptr()) : "";  // the type keeps the characters
}

// Classes of torch that hold plain tensors; they live as long as the process.
bool is_plain(PyTypeObject* type) {
  const std::string_view module = text_of(type, "__module__"), name = text_of(type, "__qualname__");
  return (module == "torch" && name == "Tensor") ||
         (module == "torch.nn.parameter" && (name == "Parameter" || name == "Buffer"));
}

const dlpack::ExchangeApi* api_of(PyTypeObject* type) {
  const py::object capsule = py::getattr(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api && api->version.major > 1) api = api->previous;
  return api && api->view ? api : nullptr;
}

// Guarded by the GIL.
const dlpack::ExchangeApi* known_api(PyTypeObject* type) {
  static std::array<Known, 3> known;
  for (Known& entry : known) {
    if (entry.type == type) return entry.api;
    if (entry.type) continue;
    if (!is_plain(type)) return nullptr;
    entry = {type, api_of(type)};
    return entry.api;
  }
  return nullptr;
}

// A table gives the memory of such a tensor, with the values' signs turned.
bool is_negated(py::handle tensor) {
  static PyObject* const name = PyUnicode_InternFromString("is_neg");
  const auto answer = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), name));
  if (!answer) throw py::error_already_set();
  return answer.ptr() != Py_False;
}

}  // namespace

bool exchange_view(py::handle tensor, dlpack::Tensor& view) {
  const dlpack::ExchangeApi* api = known_api(Py_TYPE(tensor.ptr()));
  if (!api) return false;
  if (api->view(tensor.ptr(), &view) != 0) {
    PyErr_Clear();
    return false;
  }
  return !is_negated(tensor);
}

}  // namespace lowrank
