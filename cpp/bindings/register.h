// register: one function per family, each in a file of the family's stem.
#pragma once

#include <pybind11/pybind11.h>

namespace lowrank {

void register_chain_lr(pybind11::module_& module);
void register_core(pybind11::module_& module);
void register_dct_select(pybind11::module_& module);
void register_gemm(pybind11::module_& module);
void register_int4_project(pybind11::module_& module);
void register_kalman_diag(pybind11::module_& module);
void register_rsvd(pybind11::module_& module);
void register_rsvd_augment(pybind11::module_& module);
void register_subspace_step(pybind11::module_& module);
void register_subspace_step_lines(pybind11::module_& module);
void register_subspace_step_plain(pybind11::module_& module);
void register_subspace_step_selected(pybind11::module_& module);
void register_subspace_step_following(pybind11::module_& module);
void register_subspace_step_sketched(pybind11::module_& module);

}  // namespace lowrank
