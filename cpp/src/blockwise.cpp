#include "lowrank_core/blockwise.h"

#include "lowrank_core/parallel.h"
#include "lowrank_core/simd/blockwise.h"

namespace lowrank::blockwise {
namespace {

constexpr int64_t kTask = 128;  // blocks, about 10 us

BlockRun describe(const View& codes, const View& scales, const View& values, MapKind map, const Draws* draws) {
  LRC_CHECK(values.dtype == DType::kFloat32 && scales.dtype == DType::kFloat32 &&
                codes.dtype == (map == MapKind::kSigned ? DType::kInt8 : DType::kUInt8),
            "blockwise: `values` and `scales` must be float32, `codes` int8 for signed and uint8 for root");
  LRC_CHECK(values.contiguous() && scales.contiguous() && codes.contiguous(), "blockwise: arrays must be contiguous");
  LRC_CHECK(codes.size() == values.size() && scales.size() == blocks(values.size()),
            "blockwise: there must be one code for each value and one scale for each block of 256");
  return {codes.data, static_cast<float*>(scales.data), static_cast<float*>(values.data), values.size(), 0, 0, map,
          draws};
}

template <class Run>
void for_each_run(const BlockRun& whole, const Run& body) {
  parallel_chunks(blocks(whole.size), kTask, [&](int64_t begin, int64_t end) {
    BlockRun run = whole;
    run.first = begin;
    run.count = end - begin;
    body(run);
  });
}

}  // namespace

void encode_cpu(const View& codes, const View& scales, const View& values, MapKind map, std::optional<Draws> draws) {
  for_each_run(describe(codes, scales, values, map, draws ? &*draws : nullptr),
               [](const BlockRun& run) { LRC_AT_LEVEL(blockwise_encode, run); });
}

void decode_cpu(const View& values, const View& codes, const View& scales, MapKind map) {
  for_each_run(describe(codes, scales, values, map, nullptr),
               [](const BlockRun& run) { LRC_AT_LEVEL(blockwise_decode, run); });
}

}  // namespace lowrank::blockwise
