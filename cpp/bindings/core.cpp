// core: what is not a kernel. Build facts, instruction-set levels, threads, random bits.
#include <omp.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>

#include "kernel.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/checks.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/isa.h"
#include "lowrank_core/overlap.h"
#include "lowrank_core/parallel.h"
#include "lowrank_core/philox.h"
#include "lowrank_core/roots.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = LRC_VERSION;
  info["compiler"] = LRC_COMPILER;
#if defined(LRC_CUDA_VERSION)
  info["cuda"] = LRC_CUDA_VERSION;
#else
  info["cuda"] = py::none();
#endif
  return info;
}

void philox_bits(const WriteArray& out, uint64_t seed, uint32_t stream, uint32_t step, uint64_t first) {
  LRC_CHECK(out.view.rank == 1 && out.view.dtype == DType::kInt64 && out.view.contiguous(),
            "philox_bits: `out` must be a contiguous int64 vector");
  auto* bits = static_cast<int64_t*>(out.view.data);
  for (int64_t i = 0; i < out.view.size(); ++i) bits[i] = philox::bits(seed, {first + uint64_t(i), stream, step});
}

// Memory that the core keeps from one use to the next, as a buffer of Python's.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(bytes) {}

  py::buffer_info bytes() { return {memory_.data(), memory_.size()}; }

 private:
  Buffer<uint8_t> memory_;
};

}  // namespace

void register_core(py::module_& module) {
  static const py::exception<ArrayError> array_error(module, "ArrayError", PyExc_ValueError);
  static const py::exception<SharingError> sharing_error(module, "SharingError", array_error.ptr());
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const SharingError& error) {
      py::set_error(sharing_error, error.what());
    } catch (const ArrayError& error) {
      py::set_error(array_error, error.what());
    } catch (const Error& error) {
      py::set_error(PyExc_ValueError, error.what());
    } catch (const NotFinite& error) {
      py::set_error(PyExc_FloatingPointError, error.what());
    }
  });
  py::class_<Scratch>(module, "Scratch", py::buffer_protocol(), "Uninitialised bytes, which the core uses again.")
      .def(py::init<int64_t>(), py::arg("bytes"))
      .def_buffer(&Scratch::bytes);
  module.def(
      "array_refusal",
      [](py::handle array, bool on_host) -> std::optional<std::string> {
        ReadArray read;
        load_array(array, false, read);
        if (!read.refusal.empty()) return read.refusal;
        return on_host && read.view.on_cuda ? std::optional<std::string>(kNotOnHost) : std::nullopt;
      },
      py::arg("array"), py::kw_only(), py::arg("on_host") = true,
      "Why a kernel, of the host alone or of any device, cannot read `array`, \"must ..., got ...; ...\", else None.");
  module.def(
      "overlaps_itself", [](const ReadArray& array) { return overlaps_itself(array.view); }, py::arg("array"),
      "Whether two elements of `array` share memory.");
  module.def(
      "are_ordinary",
      [](const py::typing::List<py::object>& tensors) {
        return std::all_of(tensors.begin(), tensors.end(), is_ordinary);
      },
      py::arg("tensors"), "Whether all are seen at once to be torch tensors that a step can take. False says nothing.");
  module.def(
      "share_memory",
      [](const std::vector<ReadArray>& arrays) {
        for (size_t i = 0; i < arrays.size(); ++i)
          for (size_t j = 0; j < i; ++j)
            if (overlap(arrays[i].view, arrays[j].view)) return true;
        return false;
      },
      py::arg("arrays"), "Whether two of `arrays` share memory.");
  module.def("build_info", &build_info, "Facts of this build: version, compiler, CUDA toolkit or None.");
  module.def("isa", [] { return std::string(name(isa())); }, "The instruction-set level in use.");
  module.def("isa_levels", &isa_levels, "The levels that this machine and build have, lowest first.");
  module.def("set_isa", &set_isa, py::arg("level"), "Lowers the level; ValueError for one that is not available.");
  module.def("fast_bfloat16", &has_fast_bfloat16,
             "Whether bfloat16 products are faster than float32 here, so that precision 'medium' uses them.");
  module.def(
      "mkl_roots", [] { return mkl_roots<float>() && mkl_roots<double>(); },
      "Whether the square roots that torch has from MKL are in this process.");
  module.def("num_threads", &max_threads, "Threads that the next kernel may use.");
  module.def(
      "set_num_threads",
      [](int count) {
        LRC_CHECK(count >= 1, "set_num_threads: `count` must be >= 1, got " + std::to_string(count));
        omp_set_num_threads(count);
      },
      py::arg("count"), "Sets it, for this thread; torch.set_num_threads does the same.");
  kernel(module, "philox_bits", &philox_bits, py::arg("out"), py::arg("seed"), py::arg("stream"), py::arg("step"),
         py::arg("first") = 0, "Fills `out` (int64) with the 32-bit values of elements first, first + 1, ...");
}

}  // namespace lowrank
