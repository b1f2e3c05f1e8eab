// Normal numbers, many at a time: the loop over normal.h's from_words becomes vectors.
#include "lowrank_core/normal.h"

#include "core/normal_level.h"
#include "lowrank_core/simd/philox.h"

namespace lowrank::LRC_LEVEL {
namespace {

template <class T>
void fill(T* to, int64_t begin, int64_t end, uint64_t seed, double divisor) {
  constexpr int64_t few = 256;
  uint32_t words[2 * few];
  for (int64_t i = begin; i < end; i += few) {
    const int64_t count = smaller(few, end - i);
    draw_words(words, 2 * count, seed, {uint64_t(2 * i), normal::kStream, 0});
    for (int64_t j = 0; j < count; ++j) to[i + j] = T(normal::from_words(words[2 * j], words[2 * j + 1]) / divisor);
  }
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

constinit const NormalLevel NormalLevel::LRC_LEVEL = {
    .numbers = {{LRC_LEVEL::fill<float>}, {LRC_LEVEL::fill<double>}},
};

}  // namespace lowrank
