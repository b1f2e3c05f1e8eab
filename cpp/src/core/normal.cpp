#include "lowrank_core/normal.h"

#include <algorithm>

#include "core/normal_level.h"
#include "lowrank_core/parallel.h"

namespace lowrank::normal {
namespace {

constexpr int64_t kChunk = 4096;  // numbers of one task, 15 us

void check(const Draw& draw) {
  const bool wide = draw.out.dtype == DType::kFloat64;
  LRC_CHECK(draw.out.rank == 2 && draw.out.contiguous() && (wide || draw.out.dtype == DType::kFloat32),
            "gaussian: `out` must be a contiguous matrix of float32 or float64");
  LRC_CHECK(draw.divisor > 0.0, "gaussian: `divisor` must be positive");
}

template <class T>
void fill_run(const Draw& draw, int64_t begin) {
  const int64_t end = std::min(begin + kChunk, draw.out.size());
  at_level<NormalLevel>().numbers.of<T>().fill(static_cast<T*>(draw.out.data), begin, end, draw.seed, draw.divisor);
}

}  // namespace

void fill(const std::vector<Draw>& draws) {
  std::vector<int64_t> first{0};  // task of each matrix, and how many there are
  for (const Draw& draw : draws) {
    check(draw);
    first.push_back(first.back() + (draw.out.size() + kChunk - 1) / kChunk);
  }
  parallel_for(first.back(), [&](int64_t task) {
    const auto matrix = std::upper_bound(first.begin(), first.end(), task) - first.begin() - 1;
    const Draw& draw = draws[size_t(matrix)];
    const int64_t begin = (task - first[size_t(matrix)]) * kChunk;
    draw.out.dtype == DType::kFloat64 ? fill_run<double>(draw, begin) : fill_run<float>(draw, begin);
  });
}

}  // namespace lowrank::normal
