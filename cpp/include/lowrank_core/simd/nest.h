// nest: the one blocked matrix product of the core, seen by the families that plug into it.
//
//   for every tile of C [m, n]:   epilogue(sum over p of A(i, p) * B(p, j))        A [m, k], B [k, n]
//
// A family brings, in its own file under cpp/src/<stem>/levels,
//   a Load      where the elements of an operand come from (simd/pack.h says what it has to offer), and
//   an Epilogue what becomes of a finished tile: it gets every tile exactly once, when the sum over all of k is done,
//               in float32 or float64, with its position. Tiles come from several threads at once; a tile's memory is
//               the nest's, and an epilogue must not start another product.
// and calls multiply(). Blocking, packing, threads and the micro-kernel stay in cpp/src/core/levels/nest.cpp, compiled
// once per level; the calls through the pointers below happen once per panel or tile, so they cost nothing.
// Tier D1: the partition and the order of sums depend on the shape and the level only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lowrank_core/checks.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/workspace.h"

namespace lowrank {

// How the operands are packed and multiplied. The last three round them to bfloat16 and sum in float32: kRounded with
// float32 multiply-add, kPairs with the bfloat16 dot product (from level avx512bf16 on), kTiles with AMX (avx512amx).
enum class Arithmetic : uint8_t { kFloat32, kFloat64, kRounded, kPairs, kTiles };

// The one for products into a matrix of dtype `c`.
Arithmetic arithmetic_for(DType c, Math math);

// Part of an operand, to be packed: `count` panels of `width` lines each, the first lines `step` apart. A line runs
// along k: a row of A or a column of B. `outer` is the number of the first line, `depth` its first position along k.
struct Slab {
  int64_t outer, depth, length;
  int count, step, width;

  LRC_INLINE int64_t lines() const { return int64_t(count - 1) * step + width; }
};

// Memory that will be packed soon: `runs` pieces of `bytes`, `stride` bytes apart.
struct Ahead {
  const char* data = nullptr;
  int64_t runs = 0, bytes = 0, stride = 0;
};

struct Operand {
  const void* load = nullptr;
  void (*by_depth)(const void* load, const Slab& slab, void* panels) = nullptr;  // panels [line][depth]
  void (*by_outer)(const void* load, const Slab& slab, void* panels) = nullptr;  // panels [depth][line]
  Ahead (*ahead)(const void* load, const Slab& slab) = nullptr;
  bool depth_major = false;  // by_depth needs no transposition
};

// A finished tile: rows x cols sums, `stride` elements from one row to the next, that belong at (row, col) of C.
template <class Acc>
struct Tile {
  const Acc* sums;
  int64_t row, col;
  int rows, cols;
  int stride;

  LRC_INLINE const Acc* operator[](int i) const { return sums + int64_t(i) * stride; }
};

struct Epilogue {
  const void* self = nullptr;
  void (*finish)(const void* self, const void* tile) = nullptr;  // a Tile<float>, for kFloat64 a Tile<double>
  // Whether any of the `cols` columns from (row, col) on is wanted; null: all are.
  bool (*wanted)(const void* self, int64_t row, int64_t col, int cols) = nullptr;
  // The memory that `finish` will change for the tile at (row, col); null: none that is worth a prefetch.
  Ahead (*ahead)(const void* self, int64_t row, int64_t col, int rows, int cols) = nullptr;
  // The same of memory that it only reads.
  Ahead (*read)(const void* self, int64_t row, int64_t col, int rows, int cols) = nullptr;
};

struct Product {
  int64_t m = 0, n = 0, k = 0;
  Operand a, b;
  Epilogue epilogue;
};

// parallel_for without a template, for files that must not leave weak symbols: task(job, i) for i in [0, count).
void for_each_task(int64_t count, void (*task)(const void* job, int64_t index), const void* job);

// The product of kTiles, from panels of Pairs. Only where AMX was compiled (LRC_HAVE_AMX).
void multiply_by_tiles(const Product& product);

}  // namespace lowrank

#if defined(LRC_LEVEL)
namespace lowrank::LRC_LEVEL {

void multiply(Arithmetic arithmetic, const Product& product);

}  // namespace lowrank::LRC_LEVEL
#endif
