#include "lowrank_core/int4_project_cuda.h"

#include <pybind11/stl.h>

#include "kernel.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using int4_project::Codes;
using int4_project::Format;
using int4_project::Scheme;

Scheme scheme_of(const std::string& scheme) {
  if (scheme == "affine") return Scheme::kAffine;
  if (scheme == "affine_zp") return Scheme::kAffineZp;
  if (scheme == "symmetric") return Scheme::kSymmetric;
  LRC_CHECK(scheme == "nf4",
            "int4: `scheme` must be 'affine', 'affine_zp', 'symmetric' or 'nf4', got '" + scheme + "'");
  return Scheme::kNf4;
}

bool has_offsets(Scheme scheme) { return scheme == Scheme::kAffine || scheme == Scheme::kAffineZp; }

Format format_of(int rank, int dim, int64_t group_size, const std::string& scheme) {
  LRC_CHECK(dim >= 0 && dim < rank, "int4: `dim` must be a dimension of the array");
  LRC_CHECK(
      group_size > 0 && group_size % int4_project::kGroupMultiple == 0 && group_size <= int4_project::kLargestGroup,
      "int4: `group_size` must be a multiple of 32 up to 256, got " + std::to_string(group_size));
  return {dim, group_size, scheme_of(scheme)};
}

// Memory safety only: the operators have checked the contract and worded the refusals.
void expect(const View& view, const char* argument, const View& like, const Format& format, int64_t along) {
  bool fits = view.rank == like.rank && view.contiguous();
  for (int i = 0; fits && i < like.rank; ++i) {
    fits = view.shape[size_t(i)] == (i == format.dim ? along : like.shape[size_t(i)]);
  }
  LRC_CHECK(fits, std::string("int4: `") + argument + "` must be contiguous and fit the shape");
}

void expect_codes(const Codes& codes, const View& like, const Format& format) {
  const int64_t groups = format.groups(like.shape[size_t(format.dim)]);
  expect(codes.packed, "packed", like, format, format.bytes(like.shape[size_t(format.dim)]));
  LRC_CHECK(codes.packed.dtype == DType::kUInt8, "int4: `packed` must be uint8");
  LRC_CHECK(codes.offsets.has_value() == has_offsets(format.scheme),
            "int4: `offsets` must be given for affine schemes");
  const View* grids[] = {&codes.scales, codes.offsets ? &*codes.offsets : nullptr};
  for (const View* view : grids) {
    if (!view) continue;
    expect(*view, "scales and offsets", like, format, groups);
    LRC_CHECK(view->dtype == DType::kBFloat16 || view->dtype == DType::kFloat32,
              "int4: `scales` and `offsets` must be bfloat16 or float32");
  }
}

template <class Array>
Codes codes_of(const Array& packed, const Array& scales, const std::optional<Array>& offsets) {
  return {packed.view, scales.view, offsets ? std::optional<View>(offsets->view) : std::nullopt};
}

void bind_quantize(const WriteArray& packed, const WriteArray& scales, const std::optional<WriteArray>& offsets,
                   const ReadArray& x, int dim, int64_t group_size, const std::string& scheme,
                   std::optional<uint64_t> seed, const std::optional<WriteArray>& refused, uintptr_t stream) {
  const Format format = format_of(x.view.rank, dim, group_size, scheme);
  const Codes codes = codes_of(packed, scales, offsets);
  expect_codes(codes, x.view, format);
  if (!x.view.on_cuda) return int4_project::quantize_cpu(codes, x.view, format, seed);
  LRC_CHECK(refused && refused->view.size() == 1 && refused->view.dtype == DType::kInt32,
            "quantize_int4: `refused` must be one int32");
  int4_project::quantize_cuda(codes, x.view, format, seed, refused->view, reinterpret_cast<void*>(stream));
}

void bind_dequantize(const WriteArray& out, const ReadArray& packed, const ReadArray& scales,
                     const std::optional<ReadArray>& offsets, int dim, int64_t group_size, const std::string& scheme,
                     uintptr_t stream) {
  const Format format = format_of(out.view.rank, dim, group_size, scheme);
  const Codes codes = codes_of(packed, scales, offsets);
  expect_codes(codes, out.view, format);
  if (!out.view.on_cuda) return int4_project::dequantize_cpu(out.view, codes, format);
  int4_project::dequantize_cuda(out.view, codes, format, reinterpret_cast<void*>(stream));
}

void bind_dequantize_list(const std::vector<WriteArray>& out, const std::vector<ReadArray>& packed,
                          const std::vector<ReadArray>& scales, const std::vector<ReadArray>& offsets,
                          const std::vector<int64_t>& group_sizes, int dim, const std::string& scheme,
                          uintptr_t stream) {
  const size_t count = out.size();
  LRC_CHECK(packed.size() == count && scales.size() == count && group_sizes.size() == count &&
                offsets.size() == (has_offsets(scheme_of(scheme)) ? count : 0),
            "int4: lists must be of one length");
  std::vector<int4_project::Decoding> list;
  for (size_t i = 0; i < count; ++i) {
    const std::optional<ReadArray> offset = offsets.empty() ? std::nullopt : std::optional<ReadArray>(offsets[i]);
    list.push_back({out[i].view, codes_of(packed[i], scales[i], offset),
                    format_of(out[i].view.rank, dim, group_sizes[i], scheme)});
    expect_codes(list.back().codes, out[i].view, list.back().format);
  }
  if (list.empty() || !list.front().out.on_cuda) return int4_project::dequantize_list_cpu(list);
  for (const int4_project::Decoding& one : list)
    int4_project::dequantize_cuda(one.out, one.codes, one.format, reinterpret_cast<void*>(stream));
}

void bind_project(const WriteArray& out, const ReadArray& packed, const ReadArray& scales,
                  const std::optional<ReadArray>& offsets, const ReadArray& x, int64_t rows, int64_t cols, int dim,
                  int64_t group_size, const std::string& scheme, bool back) {
  for (const View* view : {&out.view, &x.view}) {
    LRC_CHECK(view->rank >= 2 && view->batch() == out.view.batch(),
              "int4_project: `out` and `x` must be batches alike");
  }
  const Format format = format_of(2, dim, group_size, scheme);
  View shape{.rank = 2};
  shape.shape = {rows, cols};
  const Codes codes = codes_of(packed, scales, offsets);
  expect_codes(codes, shape, format);
  if (out.view.size() == 0) return;
  const Matrix c = out.view.matrix(), dense = x.view.matrix();
  LRC_CHECK(c.cols == dense.cols && c.rows == (back ? rows : cols) && dense.rows == (back ? cols : rows),
            "int4_project: the shapes must be those of a product");
  int4_project::project_cpu(out.view, {codes, rows, cols}, x.view, format, back);
}

}  // namespace

void register_int4_project(py::module_& module) {
  using namespace py::literals;
  kernel<Devices::kAny>(module, "quantize_int4", &bind_quantize, "packed"_a, "scales"_a, "offsets"_a, "x"_a,
                        py::kw_only(), "dim"_a, "group_size"_a, "scheme"_a, "seed"_a = py::none(),
                        "refused"_a = py::none(), "stream"_a = 0,
                        "Codes of `x` into packed, scales and offsets; with a seed rounded stochastically.");
  kernel<Devices::kAny>(module, "dequantize_int4", &bind_dequantize, "out"_a, "packed"_a, "scales"_a, "offsets"_a,
                        py::kw_only(), "dim"_a, "group_size"_a, "scheme"_a, "stream"_a = 0, "Decodes into `out`.");
  kernel<Devices::kAny>(module, "dequantize_int4_list", &bind_dequantize_list, "out"_a, "packed"_a, "scales"_a,
                        "offsets"_a, py::kw_only(), "group_sizes"_a, "dim"_a, "scheme"_a, "stream"_a = 0,
                        "Decodes each of a list into its `out`.");
  kernel(module, "int4_project", &bind_project, "out"_a, "packed"_a, "scales"_a, "offsets"_a, "x"_a, py::kw_only(),
         "rows"_a, "cols"_a, "dim"_a, "group_size"_a, "scheme"_a, "back"_a = false,
         "out <- Pᵀ x, or P x with `back`, for the packed matrix P [rows, cols].");
}

}  // namespace lowrank
