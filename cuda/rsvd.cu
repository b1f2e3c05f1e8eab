#include "launch.cuh"
#include "lowrank_core/rsvd.h"

namespace lowrank::rsvd {
namespace {

// One thread per Philox block of 128 signs would write 512 bytes apart; one thread per element writes coalesced and
// recomputes the block, which costs less than the traffic.
__global__ void sketch_kernel(float* out, int64_t rows, int64_t cols, uint64_t seed, uint32_t step) {
  const int64_t count = rows * cols, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < count; e += stride) {
    out[e] = sketch_entry(seed, step, cols, e / cols, e % cols);
  }
}

}  // namespace

void sketch_cuda(const View& out, uint64_t seed, uint32_t step, void* stream) {
  LRC_CHECK(out.rank == 2 && out.contiguous() && out.dtype == DType::kFloat32,
            "sketch: `out` must be a contiguous float32 matrix");
  if (out.size() == 0) return;
  const cuda::DeviceGuard guard(out.device);
  sketch_kernel<<<cuda::blocks_for(out.size()), cuda::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<float*>(out.data), out.shape[0], out.shape[1], seed, step);
  cuda::check_launch("sketch");
}

}  // namespace lowrank::rsvd
