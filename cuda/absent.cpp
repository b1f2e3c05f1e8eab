// The CUDA entry points of a build without nvcc: each refuses by a sentence.
#include "lowrank_core/int4_project_cuda.h"
#include "lowrank_core/rsvd.h"

namespace lowrank {
namespace {

[[noreturn]] void absent(const char* op) {
  fail(std::string(op) + ": got a CUDA array, but this build has no CUDA kernels; rebuild with nvcc on PATH");
}

}  // namespace

void int4_project::dequantize_cuda(const View&, const Codes&, const Format&, void*) { absent("dequantize_int4"); }
void int4_project::quantize_cuda(const Codes&, const View&, const Format&, std::optional<uint64_t>, const View&,
                                 void*) {
  absent("quantize_int4");
}
void rsvd::sketch_cuda(const View&, uint64_t, uint32_t, void*) { absent("sketch"); }

}  // namespace lowrank
