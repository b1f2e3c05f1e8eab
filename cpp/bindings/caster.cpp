#include "caster.h"

#include <string>
#include <utility>

#include "dlpack.h"
#include "exchange.h"
#include "lowrank_core/overlap.h"
#include "placement.h"

namespace py = pybind11;

namespace lowrank {
namespace {

// Why an array cannot be used; caught in load_array.
struct Refusal {
  std::string rule;
};
[[noreturn]] void refuse(std::string rule) { throw Refusal{std::move(rule)}; }

constexpr const char* kReadOnly = "must be writable, got a read-only array; pass a writable copy";
constexpr const char* kFloats = "must be float32, float64, bfloat16, float16 or an integer type, got ";

std::string text_of(py::handle object) { return py::str(object).cast<std::string>(); }
std::string type_of(py::handle object) { return text_of(py::type::of(object).attr("__name__")); }

void set_rank(View& view, int64_t rank) {
  if (rank > View::kMaxRank)
    refuse("must have at most " + std::to_string(View::kMaxRank) + " dimensions, got " + std::to_string(rank));
  view.rank = int(rank);
}

DType float_dtype(int64_t bits, bool brain) {
  if (brain && bits == 16) return DType::kBFloat16;
  if (!brain && bits == 16) return DType::kFloat16;
  if (!brain && bits == 32) return DType::kFloat32;
  if (!brain && bits == 64) return DType::kFloat64;
  refuse(kFloats + std::to_string(bits) + "-bit floats");
}

DType int_dtype(int64_t bits, bool is_signed) {
  if (bits == 8) return is_signed ? DType::kInt8 : DType::kUInt8;
  if (is_signed && bits == 32) return DType::kInt32;
  if (is_signed && bits == 64) return DType::kInt64;
  refuse("must be int8, uint8, int32 or int64 if it holds integers, got " + std::to_string(bits) + "-bit ones");
}

View from_numpy(const py::array& array, bool writable) {
  const py::dtype dtype = array.dtype();
  const char order = dtype.byteorder();
  if (order != '=' && order != '|' && order != '<')
    refuse("must have the machine's byte order, got " + text_of(dtype) + "; call `.astype(x.dtype.newbyteorder('='))`");
  if (writable && !array.writeable()) refuse(kReadOnly);
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
      refuse("must be float32 or float64, got " + text_of(dtype));
  }
  set_rank(view, array.ndim());
  for (int i = 0; i < view.rank; ++i) {
    view.shape[size_t(i)] = array.shape(i);
    if (array.strides(i) % size != 0)
      refuse("must have strides of whole elements, got " + std::to_string(array.strides(i)) +
             " bytes for elements of " + std::to_string(size) + "; pass a contiguous copy");
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
  refuse(kFloats + text);
}

// Reads the attributes of a tensor. Those of other layouts than the strided one raise, as does the address of one that
// only stands for others.
void read_torch(py::handle tensor, View& view) {
  view.dtype = torch_dtype(text_of(tensor.attr("dtype")));
  view.on_cuda = tensor.attr("is_cuda").cast<bool>();
  if (!view.on_cuda && !tensor.attr("is_cpu").cast<bool>())
    refuse("must be in memory of cpu or cuda, got device " + text_of(tensor.attr("device")));
  if (view.on_cuda) view.device = tensor.attr("get_device")().cast<int>();
  const auto shape = tensor.attr("shape").cast<py::tuple>();
  const auto stride = tensor.attr("stride")().cast<py::tuple>();
  set_rank(view, int64_t(shape.size()));
  for (int i = 0; i < view.rank; ++i) {
    view.shape[size_t(i)] = shape[size_t(i)].cast<int64_t>();
    view.stride[size_t(i)] = stride[size_t(i)].cast<int64_t>();
  }
  if (py::hasattr(tensor, "is_neg") && tensor.attr("is_neg")().cast<bool>())
    refuse("must hold its values, got a view that is to be negated when it is read; call `.resolve_neg()`");
  view.data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
}

View from_dltensor(const dlpack::Tensor& tensor) {
  View view;
  const int64_t bits = tensor.dtype.bits;
  if (tensor.dtype.lanes != 1) refuse("must hold numbers, got DLPack vectors of " + std::to_string(tensor.dtype.lanes));
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
      refuse("must be of a floating-point or integer type, got DLPack code " + std::to_string(tensor.dtype.code));
  }
  view.on_cuda = tensor.device.type == dlpack::kCuda || tensor.device.type == dlpack::kCudaManaged;
  if (!view.on_cuda && tensor.device.type != dlpack::kCpu && tensor.device.type != dlpack::kCudaHost) {
    refuse("must be in memory of cpu or cuda, got DLPack device " + std::to_string(tensor.device.type));
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

View from_torch(py::handle tensor) {
  View view;
  try {
    read_torch(tensor, view);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_RuntimeError)) throw;  // NotImplementedError is one, too
    refuse("must be an ordinary dense tensor, got a " + type_of(tensor) + " of layout " +
           text_of(tensor.attr("layout")) + "; make it one, for instance by `.to_dense()`");
  }
  return view;
}

// False for what is no torch tensor, or one of which its attributes have to say why it cannot be used.
bool read_exchanged(py::handle tensor, View& view) {
  dlpack::Tensor exchanged;
  if (!exchange_view(tensor, exchanged)) return false;
  try {
    view = from_dltensor(exchanged);
  } catch (const Refusal&) {
    return false;
  }
  place(view);
  return true;
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
      refuse("must speak DLPack version 1, got " + std::to_string(managed->version.major));
    if (writable && (managed->flags & dlpack::kReadOnly)) refuse(kReadOnly);
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
  refuse("must give a DLPack capsule, got a " + type_of(capsule) + " from its `__dlpack__`");
}

View read(py::handle from, bool writable, py::object& owner) {
  if (py::isinstance<py::array>(from)) {
    owner = py::reinterpret_borrow<py::object>(from);
    return from_numpy(py::reinterpret_borrow<py::array>(from), writable);
  }
  View view;
  const bool exchanged = read_exchanged(from, view);
  if (exchanged || (py::hasattr(from, "data_ptr") && py::hasattr(from, "stride"))) {
    owner = py::reinterpret_borrow<py::object>(from);
    return exchanged ? view : from_torch(from);
  }
  if (py::hasattr(from, "__dlpack__")) return from_dlpack(from, writable, owner);
  refuse("must be a numpy.ndarray, a torch.Tensor or an array with `__dlpack__`, got " + type_of(from));
}

// What all libraries have in common.
void check_memory(const View& view, py::handle from) {
  if (view.size() == 0) return;
  if (!view.data)
    refuse("must hold memory of its own, got a " + type_of(from) + " without any; pass the tensor that it stands for");
  const auto address = reinterpret_cast<uintptr_t>(view.data);
  if (address % uintptr_t(item_size(view.dtype)) != 0)
    refuse("must be aligned to its elements of " + std::to_string(item_size(view.dtype)) +
           " bytes, got an address between two of them; pass a copy");
}

}  // namespace

bool is_ordinary(py::handle tensor) {
  View view;
  if (!read_exchanged(tensor, view) || view.on_cuda || !is_float(view.dtype)) return false;
  return view.size() == 0 || (view.data && !overlaps_itself(view));
}

void load_array(py::handle from, bool writable, Array& to) {
  try {
    to.view = read(from, writable, to.owner);
    place(to.view);
    check_memory(to.view, from);
  } catch (const Refusal& refusal) {
    to.refusal = refusal.rule;
  }
}

}  // namespace lowrank
