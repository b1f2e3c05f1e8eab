// exchange: a torch tensor as a DLPack view by torch's own table of C functions (torch 2.13 has it;
// 0.2 us, where reading the attributes from Python takes 1.5).
#pragma once

#include <pybind11/pybind11.h>

#include "dlpack.h"

namespace lowrank {

// The memory of `tensor` in `view`, which is valid as long as the tensor is not changed. False where torch has no such
// table, for a class other than torch's own (one may stand for tensors elsewhere), and for a tensor that has no memory
// of its own or is to be negated when it is read: its attributes then say why.
bool exchange_view(pybind11::handle tensor, dlpack::Tensor& view);

}  // namespace lowrank
