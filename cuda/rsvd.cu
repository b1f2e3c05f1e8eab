#include "launch.cuh"
#include "lowrank_core/rsvd.h"

namespace lowrank::rsvd {
namespace {

// One thread for each row: it clears the row, then places the few entries.
__global__ void sketch_kernel(float* out, int64_t rows, int64_t cols, uint64_t seed, uint32_t step) {
  for (int64_t i = cuda::first_item(); i < rows; i += cuda::item_stride()) {
    float* row = out + i * cols;
    for (int64_t j = 0; j < cols; ++j) row[j] = 0.0f;
    for (int64_t t = 0; t < sketch_nonzeros(cols); ++t) {
      const SketchEntry entry = sketch_entry(seed, step, cols, i, t);
      row[entry.col] = entry.value;
    }
  }
}

}  // namespace

void sketch_cuda(const View& out, uint64_t seed, uint32_t step, void* stream) {
  LRC_CHECK(out.rank == 2 && out.contiguous() && out.dtype == DType::kFloat32,
            "sketch: `out` must be a contiguous float32 matrix");
  if (out.size() == 0) return;
  const cuda::DeviceGuard guard(out.device);
  cuda::launch("sketch", sketch_kernel, cuda::blocks_for(out.shape[0]), cuda::kThreads, 0, stream,
               static_cast<float*>(out.data), out.shape[0], out.shape[1], seed, step);
}

}  // namespace lowrank::rsvd
