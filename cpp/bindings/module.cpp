// module: the table of contents of the extension.
#include "register.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "Compiled kernels of lowrank_core. Arrays in, arrays out; the public functions are in lowrank_core.";
  lowrank::register_chain_lr(module);
  lowrank::register_core(module);
  lowrank::register_dct_select(module);
  lowrank::register_gemm(module);
  lowrank::register_int4_project(module);
  lowrank::register_kalman_diag(module);
  lowrank::register_rsvd(module);
  lowrank::register_rsvd_augment(module);
  lowrank::register_subspace_step(module);
  lowrank::register_subspace_step_lines(module);
  lowrank::register_subspace_step_plain(module);
  lowrank::register_subspace_step_selected(module);
  lowrank::register_subspace_step_following(module);
  lowrank::register_subspace_step_sketched(module);
}
