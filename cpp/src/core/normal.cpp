#include "lowrank_core/normal.h"

#include "core/normal_level.h"
#include "lowrank_core/parallel.h"

namespace lowrank::normal {
namespace {

constexpr int64_t kChunk = 4096;  // numbers of one task, 15 us

template <class T>
void fill_as(const View& out, uint64_t seed, double divisor) {
  auto* const to = static_cast<T*>(out.data);
  parallel_chunks(out.size(), kChunk, [&](int64_t begin, int64_t end) {
    at_level<NormalLevel>().numbers.of<T>().fill(to, begin, end, seed, divisor);
  });
}

}  // namespace

void fill(const View& out, uint64_t seed, double divisor) {
  const bool wide = out.dtype == DType::kFloat64;
  LRC_CHECK(out.rank == 2 && out.contiguous() && (wide || out.dtype == DType::kFloat32),
            "gaussian: `out` must be a contiguous matrix of float32 or float64");
  LRC_CHECK(divisor > 0.0, "gaussian: `divisor` must be positive");
  wide ? fill_as<double>(out, seed, divisor) : fill_as<float>(out, seed, divisor);
}

}  // namespace lowrank::normal
