// caster: the one place where an array of any library becomes a View. NumPy arrays are read by their attributes, torch
// tensors by torch's table of C functions (exchange.h) or, where that is missing or a tensor is to be refused, by their
// attributes, too; everything else comes in through `__dlpack__`. The owner stays alive as long as the argument does.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "lowrank_core/view.h"

namespace lowrank {

// An array as a View. What makes it unusable is kept until the argument's name is known (kernel.h).
struct Array {
  View view;
  std::string refusal;  // "must ..., got ...; ..."
  pybind11::object owner;
};
// One that a kernel reads, respectively writes; read-only memory is refused as a WriteArray.
struct ReadArray : Array {};
struct WriteArray : Array {};

constexpr const char* kNotOnHost =
    "must be in host memory, got a CUDA array; this kernel has no CUDA version yet, move the array to the CPU";

// True for a tensor of torch's own classes that a step can read and change: floats in host memory of its own, of which
// no two share a place, as they are. False says nothing: a slower look at it decides.
bool is_ordinary(pybind11::handle tensor);

// Errors that are not the array's, such as those of a producer of capsules, are thrown.
void load_array(pybind11::handle from, bool writable, Array& to);

}  // namespace lowrank

namespace pybind11::detail {

template <>
struct type_caster<lowrank::ReadArray> {
  PYBIND11_TYPE_CASTER(lowrank::ReadArray, const_name("numpy.typing.ArrayLike"));
  bool load(handle src, bool) {
    lowrank::load_array(src, false, value);
    return true;
  }
};

template <>
struct type_caster<lowrank::WriteArray> {
  PYBIND11_TYPE_CASTER(lowrank::WriteArray, const_name("numpy.typing.ArrayLike"));
  bool load(handle src, bool) {
    lowrank::load_array(src, true, value);
    return true;
  }
};

}  // namespace pybind11::detail
