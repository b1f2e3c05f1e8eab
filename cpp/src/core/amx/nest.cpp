// The micro-kernel of AMX: tiles of 16 x 16 float32 sums of products of bfloat16 pairs. docs/adr/0015-amx.md
#include "core/nest_loop.h"

namespace lowrank::LRC_LEVEL {
namespace {

constexpr int kSide = 16;         // rows of a tile register, and the 4-byte elements in each
constexpr int kLinesAtOnce = 16;  // of C, prefetched in each step along k: a product over 128 has only four

// What `ldtilecfg` reads. Every register is whole: panels are filled with zeros, so that edges need no other shape.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr TileConfig() {
    for (int i = 0; i < 8; ++i) row_bytes[i] = kSide * 4, rows[i] = kSide;
  }
};

class TileScope {
 public:
  TileScope() {
    static constexpr TileConfig config;
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

constexpr int kColumnsOfTiles = 2 * kSide;
constexpr size_t kSumStride = kColumnsOfTiles * sizeof(float), kLeftStride = kDepth * sizeof(uint32_t);

// tile [R x 16 rows][32 columns], of which V x 16, = or += A panel [line][depth] * B panel [depth][line]. Registers 0
// to 3 hold sums, 4 and 5 the left operand, 6 and 7 the right one.
template <int R, int V>
void tile_kernel(int64_t length, const uint32_t* a, const uint32_t* b, float* tile, bool add, Prefetcher& prefetcher) {
  float* const below = tile + kSide * kColumnsOfTiles;
  if (add) {
    _tile_loadd(0, tile, kSumStride);
    if constexpr (V > 1) _tile_loadd(1, tile + kSide, kSumStride);
    if constexpr (R > 1) _tile_loadd(2, below, kSumStride);
    if constexpr (R > 1 && V > 1) _tile_loadd(3, below + kSide, kSumStride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t p = 0; p < length; p += kSide) {
    const uint32_t* const right = b + p * kColumnsOfTiles;
    _tile_loadd(6, right, kSumStride);
    _tile_loadd(4, a + p, kLeftStride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (V > 1) _tile_loadd(7, right + kSide, kSumStride);
    if constexpr (V > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (R > 1) _tile_loadd(5, a + kSide * kDepth + p, kLeftStride);
    if constexpr (R > 1) _tile_dpbf16ps(2, 5, 6);
    if constexpr (R > 1 && V > 1) _tile_dpbf16ps(3, 5, 7);
    prefetcher.lines<2>(kLinesAtOnce);
  }
  _tile_stored(0, tile, kSumStride);
  if constexpr (V > 1) _tile_stored(1, tile + kSide, kSumStride);
  if constexpr (R > 1) _tile_stored(2, below, kSumStride);
  if constexpr (R > 1 && V > 1) _tile_stored(3, below + kSide, kSumStride);
}

struct TileKernel {
  using Packed = uint32_t;
  using Acc = float;
  static constexpr int kPerPacked = 2, kStep = kSide, kTurn = kSide;
  static constexpr int kRows = kTileRows, kPaddedRows = kTileRows, kColumns = kColumnsOfTiles;
  static constexpr bool kByDepth = true;
  static constexpr int64_t kRowPanels = 32, kColumnPanels = 16, kGroupAcross = 4;
  static constexpr int64_t kTaskWork = int64_t(1) << 22;
  using Scope = TileScope;

  static decltype(&tile_kernel<2, 2>) choose(int rows, int columns, bool) {
    if (columns <= kSide) return rows <= kSide ? tile_kernel<1, 1> : tile_kernel<2, 1>;
    return rows <= kSide ? tile_kernel<1, 2> : tile_kernel<2, 2>;
  }
};
static_assert(kTileRows == 2 * kSide && kColumnsOfTiles == kColumnVectors * kLanes<float>);

}  // namespace
}  // namespace lowrank::LRC_LEVEL

namespace lowrank {

void multiply_by_tiles(const Product& product) { LRC_LEVEL::Nest<LRC_LEVEL::TileKernel>(product).run(); }

}  // namespace lowrank
