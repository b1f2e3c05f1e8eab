// int4_project_cuda: the entry points of int4_project for arrays of a GPU. A build without its kernels refuses.
#pragma once

#include "lowrank_core/int4_project.h"

namespace lowrank::int4_project {

// The bits of quantize_cpu. Nothing is thrown for what `x` holds: `refused`, one int32 there, becomes 1 if a group has
// no codes, and stays as it is if all have.
void quantize_cuda(const Codes& codes, const View& x, const Format& format, std::optional<uint64_t> seed,
                   const View& refused, void* stream);

// The bits of dequantize_cpu.
void dequantize_cuda(const View& out, const Codes& codes, const Format& format, void* stream);

}  // namespace lowrank::int4_project
