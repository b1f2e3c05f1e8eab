// The CUDA entry points of a build without nvcc: each refuses by a sentence.
#include "lowrank_core/rsvd.h"

namespace lowrank {
namespace {

[[noreturn]] void absent(const char* op) {
  fail(std::string(op) + ": got a CUDA array, but this build has no CUDA kernels; rebuild with nvcc on PATH");
}

}  // namespace

void rsvd::sketch_cuda(const View&, uint64_t, uint32_t, void*) { absent("sketch"); }

}  // namespace lowrank
