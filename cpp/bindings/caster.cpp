#include "caster.h"

#include <string>

#include "dlpack.h"

namespace py = pybind11;

namespace lowrank {
namespace {

void set_rank(View& view, int64_t rank) {
  if (rank > View::kMaxRank)
    fail("array: at most " + std::to_string(View::kMaxRank) + " dimensions are supported, got " + std::to_string(rank));
  view.rank = int(rank);
}

DType float_dtype(int64_t bits, bool brain) {
  if (brain && bits == 16) return DType::kBFloat16;
  if (!brain && bits == 16) return DType::kFloat16;
  if (!brain && bits == 32) return DType::kFloat32;
  if (!brain && bits == 64) return DType::kFloat64;
  fail("array: the dtype must be float32, float64, bfloat16, float16 or an integer type, got a " +
       std::to_string(bits) + "-bit float");
}

DType int_dtype(int64_t bits, bool is_signed) {
  if (bits == 8) return is_signed ? DType::kInt8 : DType::kUInt8;
  if (is_signed && bits == 32) return DType::kInt32;
  if (is_signed && bits == 64) return DType::kInt64;
  fail("array: the integer dtype must be int8, uint8, int32 or int64, got " + std::to_string(bits) + " bits");
}

View from_numpy(const py::array& array, bool writable) {
  const py::dtype dtype = array.dtype();
  const char order = dtype.byteorder();
  if (order != '=' && order != '|' && order != '<')
    fail("array: the byte order must be native; call `.astype(x.dtype.newbyteorder('='))`");
  if (writable && !array.writeable()) fail("array: the output is read-only; pass a writable copy");
  View view;
  const int64_t size = dtype.itemsize();
  switch (dtype.kind()) {
    case 'f':
      view.dtype = float_dtype(size * 8, false);
      break;
    case 'i':
    case 'u':
      view.dtype = int_dtype(size * 8, dtype.kind() == 'i');
      break;
    default:
      fail("array: the dtype must be float32 or float64, got " + py::str(dtype).cast<std::string>());
  }
  set_rank(view, array.ndim());
  for (int i = 0; i < view.rank; ++i) {
    view.shape[size_t(i)] = array.shape(i);
    if (array.strides(i) % size != 0) fail("array: the strides must be whole elements; pass a contiguous copy");
    view.stride[size_t(i)] = array.strides(i) / size;
  }
  view.data = const_cast<void*>(array.data());
  return view;
}

DType torch_dtype(const std::string& text) {
  if (text == "torch.float32") return DType::kFloat32;
  if (text == "torch.float64") return DType::kFloat64;
  if (text == "torch.bfloat16") return DType::kBFloat16;
  if (text == "torch.float16") return DType::kFloat16;
  if (text == "torch.int8") return DType::kInt8;
  if (text == "torch.uint8") return DType::kUInt8;
  if (text == "torch.int32") return DType::kInt32;
  if (text == "torch.int64") return DType::kInt64;
  fail("array: the dtype must be float32, float64, bfloat16, float16 or an integer type, got " + text);
}

View from_torch(py::handle tensor) {
  View view;
  view.dtype = torch_dtype(py::str(tensor.attr("dtype")));
  view.on_cuda = tensor.attr("is_cuda").cast<bool>();
  if (!view.on_cuda && !tensor.attr("is_cpu").cast<bool>()) {
    fail("array: the device must be cpu or cuda, got " + py::str(tensor.attr("device")).cast<std::string>());
  }
  if (view.on_cuda) view.device = tensor.attr("get_device")().cast<int>();
  const auto shape = tensor.attr("shape").cast<py::tuple>();
  const auto stride = tensor.attr("stride")().cast<py::tuple>();
  set_rank(view, int64_t(shape.size()));
  for (int i = 0; i < view.rank; ++i) {
    view.shape[size_t(i)] = shape[size_t(i)].cast<int64_t>();
    view.stride[size_t(i)] = stride[size_t(i)].cast<int64_t>();
  }
  view.data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
  return view;
}

View from_dltensor(const dlpack::Tensor& tensor) {
  View view;
  const int64_t bits = tensor.dtype.bits;
  if (tensor.dtype.lanes != 1) fail("array: vector types are not supported");
  switch (tensor.dtype.code) {
    case dlpack::kFloat:
    case dlpack::kBfloat:
      view.dtype = float_dtype(bits, tensor.dtype.code == dlpack::kBfloat);
      break;
    case dlpack::kInt:
    case dlpack::kUInt:
      view.dtype = int_dtype(bits, tensor.dtype.code == dlpack::kInt);
      break;
    default:
      fail("array: the dtype must be a floating-point or integer type, got DLPack code " +
           std::to_string(tensor.dtype.code));
  }
  view.on_cuda = tensor.device.type == dlpack::kCuda || tensor.device.type == dlpack::kCudaManaged;
  if (!view.on_cuda && tensor.device.type != dlpack::kCpu && tensor.device.type != dlpack::kCudaHost) {
    fail("array: the device must be cpu or cuda, got DLPack device " + std::to_string(tensor.device.type));
  }
  view.device = view.on_cuda ? tensor.device.id : 0;
  set_rank(view, tensor.ndim);
  int64_t compact = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[size_t(i)] = tensor.shape[i];
    view.stride[size_t(i)] = tensor.strides ? tensor.strides[i] : compact;
    compact *= tensor.shape[i];
  }
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  return view;
}

// Runs the producer's deleter when the last reference to the view's owner goes.
template <class M>
py::capsule own(M* managed) {
  return py::capsule(managed, [](void* p) {
    M* tensor = static_cast<M*>(p);
    if (tensor->deleter) tensor->deleter(tensor);
  });
}

View from_dlpack(py::handle array, bool writable, py::object& owner) {
  py::object capsule;
  try {
    capsule = array.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    capsule = array.attr("__dlpack__")();  // a producer older than DLPack 1.0
  }
  PyObject* raw = capsule.ptr();
  if (PyCapsule_IsValid(raw, "dltensor_versioned")) {
    auto* managed = static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(raw, "dltensor_versioned"));
    if (managed->version.major != 1)
      fail("array: DLPack version " + std::to_string(managed->version.major) + " is not supported");
    if (writable && (managed->flags & dlpack::kReadOnly)) fail("array: the output is read-only; pass a writable copy");
    PyCapsule_SetName(raw, "used_dltensor_versioned");
    owner = own(managed);
    return from_dltensor(managed->tensor);
  }
  if (PyCapsule_IsValid(raw, "dltensor")) {
    auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(raw, "dltensor"));
    PyCapsule_SetName(raw, "used_dltensor");
    owner = own(managed);
    return from_dltensor(managed->tensor);
  }
  throw py::type_error("array: `__dlpack__` returned no usable capsule");
}

}  // namespace

View view_of(py::handle array, bool writable, py::object& owner) {
  if (py::isinstance<py::array>(array)) {
    owner = py::reinterpret_borrow<py::object>(array);
    return from_numpy(py::reinterpret_borrow<py::array>(array), writable);
  }
  if (py::hasattr(array, "data_ptr") && py::hasattr(array, "stride")) {
    owner = py::reinterpret_borrow<py::object>(array);
    return from_torch(array);
  }
  if (py::hasattr(array, "__dlpack__")) return from_dlpack(array, writable, owner);
  throw py::type_error("array: expected a numpy.ndarray, a torch.Tensor or an array with `__dlpack__`, got " +
                       py::str(py::type::of(array).attr("__name__")).cast<std::string>());
}

void require_cpu(const View& view, const char* argument) {
  if (view.on_cuda)
    fail(std::string("array: `") + argument +
         "` must be in host memory, got a CUDA array; this kernel has no CUDA version yet, move the array to the CPU");
}

}  // namespace lowrank
