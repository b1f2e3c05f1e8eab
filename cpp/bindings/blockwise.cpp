#include "lowrank_core/blockwise.h"

#include <pybind11/stl.h>

#include "caster.h"
#include "register.h"

namespace py = pybind11;

namespace lowrank {
namespace {

using blockwise::Draws;
using blockwise::MapKind;

MapKind map_of(const std::string& map) {
  if (map == "signed") return MapKind::kSigned;
  LRC_CHECK(map == "root", "blockwise: `map` must be 'signed' or 'root', got '" + map + "'");
  return MapKind::kRoot;
}

void bind_encode(const WriteArray& codes, const WriteArray& scales, const ReadArray& values, const std::string& map,
                 std::optional<uint64_t> seed, uint32_t stream, uint32_t step) {
  for (const View* view : {&codes.view, &scales.view, &values.view}) require_cpu(*view, "codes, scales and values");
  const auto draws = seed ? std::optional<Draws>({*seed, stream, step}) : std::nullopt;
  blockwise::encode_cpu(codes.view, scales.view, values.view, map_of(map), draws);
}

void bind_decode(const WriteArray& values, const ReadArray& codes, const ReadArray& scales, const std::string& map) {
  for (const View* view : {&codes.view, &scales.view, &values.view}) require_cpu(*view, "codes, scales and values");
  blockwise::decode_cpu(values.view, codes.view, scales.view, map_of(map));
}

}  // namespace

void register_blockwise(py::module_& module) {
  using namespace py::literals;
  using Release = py::call_guard<py::gil_scoped_release>;
  module.def("blockwise_encode", &bind_encode, "codes"_a, "scales"_a, "values"_a, py::kw_only(), "map"_a,
             "seed"_a = py::none(), "stream"_a = blockwise::kStateStream, "step"_a = 0, Release(),
             "8-bit codes of float32 `values` in blocks of 256; with a seed rounded stochastically.");
  module.def("blockwise_decode", &bind_decode, "values"_a, "codes"_a, "scales"_a, py::kw_only(), "map"_a, Release(),
             "Decodes into `values`.");
}

}  // namespace lowrank
