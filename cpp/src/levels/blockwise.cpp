// The statements of blockwise.h over runs of blocks.
#include "lowrank_core/simd/blockwise.h"

namespace lowrank::LRC_LEVEL {
namespace {

using namespace blockwise;

// body(block, its first element, its size)
template <class Body>
LRC_HD void for_each_block(const BlockRun& run, const Body& body) {
  for (int64_t block = run.first; block < run.first + run.count; ++block) {
    const int64_t begin = block * kBlock, left = run.size - begin;
    body(block, begin, left < kBlock ? left : kBlock);
  }
}

template <class Map>
void encode(const BlockRun& run) {
  auto* const codes = static_cast<typename Map::Code*>(run.codes);
  for_each_block(run, [&](int64_t block, int64_t begin, int64_t n) {
    const float* const values = run.values + begin;
    if (run.draws) {
      const Stochastic rounding{run.draws->seed, {uint64_t(begin), run.draws->stream, run.draws->step}};
      run.scales[block] = encode_block<Map>(codes + begin, values, n, rounding);
    } else {
      run.scales[block] = encode_block<Map>(codes + begin, values, n, Nearest{});
    }
  });
}

template <class Map>
void decode(const BlockRun& run) {
  const auto* const codes = static_cast<const typename Map::Code*>(run.codes);
  for_each_block(run, [&](int64_t block, int64_t begin, int64_t n) {
    decode_block<Map>(run.values + begin, codes + begin, run.scales[block], n);
  });
}

}  // namespace

void blockwise_encode(const BlockRun& run) {
  run.map == MapKind::kSigned ? encode<SignedMap>(run) : encode<RootMap>(run);
}

void blockwise_decode(const BlockRun& run) {
  run.map == MapKind::kSigned ? decode<SignedMap>(run) : decode<RootMap>(run);
}

}  // namespace lowrank::LRC_LEVEL
