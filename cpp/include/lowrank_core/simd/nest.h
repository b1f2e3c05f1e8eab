// nest: the one blocked matrix product of the core, seen by the families that plug into it.
//
//   for every tile of C [m, n]:   epilogue(sum over p of A(i, p) * B(p, j))        A [m, k], B [k, n]
//
// A family brings, in its own file under cpp/src/levels,
//   a Load      where the elements of an operand come from (simd/pack.h says what it has to offer), and
//   an Epilogue what becomes of a finished tile: it gets every tile exactly once, when the sum over all of k is done,
//               in float32 or float64, with its position.
// and calls multiply(). Blocking, packing, threads and the micro-kernel stay in cpp/src/levels/gemm_nest.cpp, compiled
// once per level; the calls through the pointers below happen once per panel or tile, so they cost nothing.
// Tier D1: the partition and the order of sums depend on the shape and the level only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowrank {

// How an operand is packed and multiplied. kRounded and kPairs both compute with operands rounded to bfloat16 and
// float32 sums: kRounded on float32 multiply-add, kPairs on the bfloat16 dot product (level avx512bf16 only).
enum class Arithmetic : uint8_t { kFloat32, kFloat64, kRounded, kPairs };

// An operand seen from the product: `outer` is its row in A or its column in B, `depth` its position along k.
struct Operand {
  using Pack = void (*)(const void* load, int64_t outer, int64_t depth, int64_t length, void* panel, int width);

  const void* load = nullptr;
  Pack by_depth = nullptr;  // panel [outer][depth]: no transposition where depth is the contiguous direction
  Pack by_outer = nullptr;  // panel [depth][outer]
  bool depth_major = false;
};

// A finished tile: rows x cols valid sums, `stride` elements from one row to the next, at (row, col) of C.
template <class Acc>
struct Tile {
  const Acc* sums;
  int64_t row, col;
  int rows, cols;
  int stride;

  const Acc* operator[](int i) const { return sums + int64_t(i) * stride; }
};

struct Epilogue {
  const void* self = nullptr;
  void (*finish)(const void* self, const void* tile) = nullptr;  // tile: Tile<float>, for kFloat64 Tile<double>
  // Whether the tile that starts at (row, col) and is `cols` wide is wanted at all; null: every tile.
  bool (*wanted)(const void* self, int64_t row, int64_t col, int cols) = nullptr;
};

struct Product {
  int64_t m = 0, n = 0, k = 0;
  Operand a, b;
  Epilogue epilogue;
};

// Memory of the calling thread, 64-byte aligned, kept for the next call; the slots do not overlap.
enum class Scratch : uint8_t { kPanelA, kPanelB, kTiles, kPartial };
void* scratch(Scratch slot, size_t bytes);

// parallel_for without a template: task(job, i) for every i in [0, count).
void for_each_task(int64_t count, void (*task)(const void* job, int64_t index), const void* job);

}  // namespace lowrank

#if defined(LRC_LEVEL)
namespace lowrank::LRC_LEVEL {

void multiply(Arithmetic arithmetic, const Product& product);

}  // namespace lowrank::LRC_LEVEL
#endif
