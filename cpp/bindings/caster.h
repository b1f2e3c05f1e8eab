// caster: the one place where an array of any library becomes a View. NumPy arrays and torch tensors are read by their
// attributes (torch costs 2 us through DLPack and refuses tensors that require gradients); everything else comes
// in through DLPack. The owner stays alive as long as the argument does.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "lowrank_core/view.h"

namespace lowrank {

// An array that a kernel reads, respectively writes; read-only memory is refused as a WriteArray.
struct ReadArray {
  View view;
  pybind11::object owner;
};
struct WriteArray {
  View view;
  pybind11::object owner;
};

// Throws Error (ValueError) or TypeError with a sentence.
View view_of(pybind11::handle array, bool writable, pybind11::object& owner);

// Refuses a view that is not in host memory.
void require_cpu(const View& view, const char* argument);

}  // namespace lowrank

namespace pybind11::detail {

template <>
struct type_caster<lowrank::ReadArray> {
  PYBIND11_TYPE_CASTER(lowrank::ReadArray, const_name("numpy.typing.ArrayLike"));
  bool load(handle src, bool) {
    value.view = lowrank::view_of(src, false, value.owner);
    return true;
  }
};

template <>
struct type_caster<lowrank::WriteArray> {
  PYBIND11_TYPE_CASTER(lowrank::WriteArray, const_name("numpy.typing.ArrayLike"));
  bool load(handle src, bool) {
    value.view = lowrank::view_of(src, true, value.owner);
    return true;
  }
};

}  // namespace pybind11::detail
