#include "lowrank_core/gemm.h"

#include <cstdlib>
#include <memory>
#include <new>

#include "lowrank_core/isa.h"
#include "lowrank_core/parallel.h"
#include "lowrank_core/simd/gemm_dense.h"

namespace lowrank {

void* scratch(Scratch slot, size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Buffer {
    std::unique_ptr<void, Free> memory;
    size_t bytes = 0;
  };
  thread_local Buffer buffers[4];
  Buffer& buffer = buffers[int(slot)];
  if (buffer.bytes < bytes) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.memory.reset();
    buffer.bytes = 0;
    buffer.memory.reset(std::aligned_alloc(4096, rounded));
    if (!buffer.memory) throw std::bad_alloc();
    buffer.bytes = rounded;
  }
  return buffer.memory.get();
}

void for_each_task(int64_t count, void (*task)(const void* job, int64_t index), const void* job) {
  parallel_for(count, [&](int64_t i) { task(job, i); });
}

void gemm(const Matrix& c, const Matrix& a, const Matrix& b, const GemmOptions& options) {
  if (c.empty()) return;
  Arithmetic arithmetic = Arithmetic::kFloat32;
  if (c.dtype == DType::kFloat64) arithmetic = Arithmetic::kFloat64;
  else if (options.math == Math::kBFloat16) arithmetic = isa() == Isa::kAvx512Bf16 && getenv("DOT") ? Arithmetic::kPairs : Arithmetic::kRounded;
  const DenseProduct product{c, a, b, options.alpha, options.beta, arithmetic, false};
  LRC_AT_LEVEL(gemm_dense, product);
}

}  // namespace lowrank
namespace lowrank { void gram(const Matrix& g, const Matrix& y, const GemmOptions& o) { gemm(g, y.transposed(), y, o); } }
