// The loop nest and the micro-kernel: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication"
// (ACM TOMS 34, 2008), section 4, with two changes. A panel of A is packed right before its only use, so it never
// leaves L1; and B is packed by the task that needs it, so a product is one parallel region.
#include <algorithm>

#include "lowrank_core/simd/pack.h"

namespace lowrank::LRC_LEVEL {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// tile [R][kColumnVectors * lanes] += (or =) A panel [R rows] * B panel [length][V vectors]
template <class P, int R, int V, bool kByDepth>
void micro_kernel(int64_t length, const typename P::Packed* a, const typename P::Packed* b, typename P::Acc* tile,
                  bool accumulate) {
  constexpr int lanes = kLanes<typename P::Acc>;
  constexpr int stride = kColumnVectors * lanes;
  constexpr int padded = (kRows + lanes - 1) / lanes * lanes;
  constexpr int64_t row_step = kByDepth ? kDepth : 1;
  constexpr int64_t depth_step = kByDepth ? 1 : padded;
  using AccVec = Vec<typename P::Acc>;
  AccVec sum[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) {
      sum[i][j] = accumulate ? load_bits<AccVec>(tile + i * stride + j * lanes) : AccVec{};
    }
  }
  for (int64_t p = 0; p < length; ++p) {
    Vec<typename P::Packed> right[V];
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) right[j] = load_bits<Vec<typename P::Packed>>(b + p * V * lanes + j * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const typename P::Packed left = a[i * row_step + p * depth_step];
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) sum[i][j] = P::multiply_accumulate(sum[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) store_bits(tile + i * stride + j * lanes, sum[i][j]);
  }
}

template <class P, int V, bool kByDepth>
void run_kernel(int64_t rows, int64_t length, const void* a_panel, const void* b_panel, typename P::Acc* tile,
                bool accumulate) {
  const auto* a = static_cast<const typename P::Packed*>(a_panel);
  const auto* b = static_cast<const typename P::Packed*>(b_panel);
  if (rows <= 2) return micro_kernel<P, 2, V, kByDepth>(length, a, b, tile, accumulate);
  if (rows <= 4) return micro_kernel<P, 4, V, kByDepth>(length, a, b, tile, accumulate);
  if (kRows > 8 && rows <= 8) return micro_kernel<P, 8, V, kByDepth>(length, a, b, tile, accumulate);
  return micro_kernel<P, kRows, V, kByDepth>(length, a, b, tile, accumulate);
}

// How a product is cut: panels of kRows rows and kColumnVectors vectors of columns into row blocks and column blocks,
// and, where those are few and k is long, slices of k whose partial sums are added in order afterwards.
struct Partition {
  int64_t row_panels, column_panels, depth_blocks;
  int64_t row_blocks, column_blocks, slices;

  int64_t tasks() const { return row_blocks * column_blocks * slices; }
};

// First of the `total` items that part `index` of `parts` nearly equal ones takes.
int64_t part_begin(int64_t total, int64_t index, int64_t parts) { return total * index / parts; }

template <class P>
struct Nest {
  using Acc = typename P::Acc;
  using Packed = typename P::Packed;
  static constexpr int kLane = kLanes<Acc>;
  static constexpr int kColumns = kColumnVectors * kLane;
  static constexpr int kPaddedRows = (kRows + kLane - 1) / kLane * kLane;
  static constexpr int64_t kBlock = int64_t(kDepth) * P::kPerPacked;  // elements along k
  static constexpr int64_t kTile = int64_t(kRows) * kColumns;

  const Product& product;
  Partition cut;
  Acc* partial;

  explicit Nest(const Product& product_) : product(product_), partial(nullptr) {
    cut.row_panels = ceil_div(product.m, kRows);
    cut.column_panels = ceil_div(product.n, kColumns);
    cut.depth_blocks = std::max<int64_t>(1, ceil_div(product.k, kBlock));
    cut.row_blocks = ceil_div(cut.row_panels, 16);
    if (cut.row_blocks > 1) cut.row_blocks = std::min(cut.row_panels, ceil_div(cut.row_blocks, 4) * 4);
    cut.column_blocks = ceil_div(cut.column_panels, 16);
    cut.slices = 1;
    const int64_t blocks = cut.row_blocks * cut.column_blocks;
    if (blocks < 4) cut.slices = std::max<int64_t>(1, std::min(8 / blocks, cut.depth_blocks / 2));
  }

  void run() {
    if (cut.slices > 1) {
      const int64_t tiles = cut.slices * cut.row_panels * cut.column_panels;
      partial = static_cast<Acc*>(scratch(Scratch::kPartial, size_t(tiles * kTile) * sizeof(Acc)));
    }
    for_each_task(cut.tasks(), [](const void* self, int64_t i) { static_cast<const Nest*>(self)->task(i); }, this);
    if (cut.slices > 1) {
      for_each_task(cut.row_panels, [](const void* self, int64_t i) { static_cast<const Nest*>(self)->reduce(i); },
                    this);
    }
  }

  void task(int64_t index) const {
    const int64_t slice = index % cut.slices;
    const int64_t row_block = index / cut.slices % cut.row_blocks;
    const int64_t column_block = index / cut.slices / cut.row_blocks;
    const int64_t i0 = part_begin(cut.row_panels, row_block, cut.row_blocks);
    const int64_t i1 = part_begin(cut.row_panels, row_block + 1, cut.row_blocks);
    const int64_t j0 = part_begin(cut.column_panels, column_block, cut.column_blocks);
    const int64_t j1 = part_begin(cut.column_panels, column_block + 1, cut.column_blocks);
    const int64_t d0 = part_begin(cut.depth_blocks, slice, cut.slices);
    const int64_t d1 = part_begin(cut.depth_blocks, slice + 1, cut.slices);

    auto* a_panel = static_cast<Packed*>(scratch(Scratch::kPanelA, sizeof(Packed) * kPaddedRows * kDepth));
    auto* b_panels = static_cast<Packed*>(scratch(Scratch::kPanelB, sizeof(Packed) * (j1 - j0) * kColumns * kDepth));
    auto* tiles = static_cast<Acc*>(scratch(Scratch::kTiles, sizeof(Acc) * (i1 - i0) * (j1 - j0) * kTile));

    for (int64_t d = d0; d < d1; ++d) {
      const int64_t depth = d * kBlock;
      const int64_t length = std::min(kBlock, product.k - depth);
      const int64_t packed = ceil_div(length, P::kPerPacked);
      for (int64_t j = j0; j < j1; ++j) {
        product.b.by_outer(product.b.load, j * kColumns, depth, length, b_panels + (j - j0) * kColumns * kDepth, width(j));
      }
      for (int64_t i = i0; i < i1; ++i) {
        if (product.a.depth_major) {
          product.a.by_depth(product.a.load, i * kRows, depth, length, a_panel, kRows);
        } else {
          product.a.by_outer(product.a.load, i * kRows, depth, length, a_panel, kPaddedRows);
        }
        for (int64_t j = j0; j < j1; ++j) {
          Acc* tile = partial ? partial + ((slice * cut.row_panels + i) * cut.column_panels + j) * kTile
                              : tiles + ((i - i0) * (j1 - j0) + (j - j0)) * kTile;
          if (!wanted(i, j)) continue;
          update(i, j, packed, a_panel, b_panels + (j - j0) * kColumns * kDepth, tile, d > d0);
          if (!partial && d + 1 == d1) finish(i, j, tile);
        }
      }
    }
  }

  void reduce(int64_t i) const {
    for (int64_t j = 0; j < cut.column_panels; ++j) {
      if (!wanted(i, j)) continue;
      Acc* total = partial + (i * cut.column_panels + j) * kTile;
      for (int64_t s = 1; s < cut.slices; ++s) {
        const Acc* part = total + s * cut.row_panels * cut.column_panels * kTile;
        for (int64_t e = 0; e < kTile; ++e) total[e] += part[e];
      }
      finish(i, j, total);
    }
  }

  int rows(int64_t i) const { return int(std::min<int64_t>(kRows, product.m - i * kRows)); }
  int columns(int64_t j) const { return int(std::min<int64_t>(kColumns, product.n - j * kColumns)); }
  int width(int64_t j) const { return columns(j) <= kLane ? kLane : kColumns; }  // of the packed panel

  bool wanted(int64_t i, int64_t j) const {
    const Epilogue& epilogue = product.epilogue;
    return !epilogue.wanted || epilogue.wanted(epilogue.self, i * kRows, j * kColumns, columns(j));
  }

  void update(int64_t i, int64_t j, int64_t packed, const Packed* a, const Packed* b, Acc* tile, bool add) const {
    if (product.a.depth_major) {
      if (width(j) == kLane) return run_kernel<P, 1, true>(rows(i), packed, a, b, tile, add);
      return run_kernel<P, 2, true>(rows(i), packed, a, b, tile, add);
    }
    if (width(j) == kLane) return run_kernel<P, 1, false>(rows(i), packed, a, b, tile, add);
    return run_kernel<P, 2, false>(rows(i), packed, a, b, tile, add);
  }

  void finish(int64_t i, int64_t j, const Acc* sums) const {
    const Tile<Acc> tile{sums, i * kRows, j * kColumns, rows(i), columns(j), kColumns};
    product.epilogue.finish(product.epilogue.self, &tile);
  }
};

}  // namespace

void multiply(Arithmetic arithmetic, const Product& product) {
  if (arithmetic == Arithmetic::kFloat64) return Nest<Plain<double>>(product).run();
#if defined(__AVX512BF16__)
  if (arithmetic == Arithmetic::kPairs) return Nest<Pairs>(product).run();
#endif
  Nest<Plain<float>>(product).run();
}

}  // namespace lowrank::LRC_LEVEL
