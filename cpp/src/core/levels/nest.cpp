// The micro-kernel of vectors. docs/adr/0002-gemm.md has the reasons and the figures.
#include "core/nest_loop.h"

namespace lowrank::LRC_LEVEL {
namespace {

constexpr int kPrefetchEvery = 4;  // steps along k

// Of a panel of A that is [depth][line].
template <class Acc>
constexpr int kPaddedRows = (kRows + kLanes<Acc> - 1) / kLanes<Acc> * kLanes<Acc>;

// tile [R rows][V vectors of kColumns] = or += A panel * B panel over `length` packed elements along k. The panel of A
// is [line][depth] or [depth][line]: a broadcast costs the same from both, so neither layout of A is transposed.
template <class P, int R, int V, bool kByDepth>
void micro_kernel(int64_t length, const typename P::Packed* a, const typename P::Packed* b, typename P::Acc* tile,
                  bool add, Prefetcher& prefetcher) {
  using Sums = Vec<typename P::Acc>;
  using Right = Vec<typename P::Packed>;
  constexpr int lane = kLanes<typename P::Acc>, columns = kColumnVectors * lane;
  constexpr int64_t line_step = kByDepth ? kDepth : 1, depth_step = kByDepth ? 1 : kPaddedRows<typename P::Acc>;
  Sums sum[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) {
      sum[i][j] = add ? load_bits<Sums>(tile + i * columns + j * lane) : Sums{};
    }
  }
  for (int64_t p = 0; p < length; ++p) {
    if (p % kPrefetchEvery == 0) prefetcher.lines<3>(prefetcher.pace());
    Right right[V];
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) right[j] = load_bits<Right>(b + p * columns + j * lane);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const typename P::Packed left = a[i * line_step + p * depth_step];
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) sum[i][j] = P::multiply_accumulate(sum[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) store_bits(tile + i * columns + j * lane, sum[i][j]);
  }
}

template <class P>
using Kernel = decltype(&micro_kernel<P, kRows, kColumnVectors, true>);

// The smallest kernel that covers the rows of a tile.
template <class P, int V, bool kByDepth>
Kernel<P> kernel_for(int rows) {
  if (rows <= 2) return micro_kernel<P, 2, V, kByDepth>;
  if (rows <= 4) return micro_kernel<P, 4, V, kByDepth>;
  if (rows <= 8 && kRows > 8) return micro_kernel<P, 8, V, kByDepth>;
  return micro_kernel<P, kRows, V, kByDepth>;
}

template <class P>
struct VectorKernel {
  using Packed = typename P::Packed;
  using Acc = typename P::Acc;
  static constexpr int kPerPacked = P::kPerPacked, kStep = 1, kTurn = kPrefetchEvery;
  static constexpr int kRows = LRC_LEVEL::kRows, kPaddedRows = LRC_LEVEL::kPaddedRows<Acc>;
  static constexpr int kColumns = kColumnVectors * kLanes<Acc>;
  static constexpr bool kByDepth = false;
  static constexpr int64_t kRowPanels = 32, kColumnPanels = 16, kGroupAcross = kRowPanels;
  static constexpr int64_t kTaskWork = int64_t(1) << 20;
  struct Scope {
    Scope() {}
  };

  static Kernel<P> choose(int rows, int columns, bool by_depth) {
    if (columns <= kLanes<Acc>) return by_depth ? kernel_for<P, 1, true>(rows) : kernel_for<P, 1, false>(rows);
    return by_depth ? kernel_for<P, kColumnVectors, true>(rows) : kernel_for<P, kColumnVectors, false>(rows);
  }
};

}  // namespace

void multiply(Arithmetic arithmetic, const Product& product) {
  if (product.m == 0 || product.n == 0) return;
  if (arithmetic == Arithmetic::kFloat64) return Nest<VectorKernel<Plain<double>>>(product).run();
#if defined(__AVX512BF16__)
  if (arithmetic == Arithmetic::kPairs) return Nest<VectorKernel<Pairs>>(product).run();
#if defined(LRC_HAVE_AMX)
  if (arithmetic == Arithmetic::kTiles) return multiply_by_tiles(product);
#endif
#endif
  Nest<VectorKernel<Plain<float>>>(product).run();
}

}  // namespace lowrank::LRC_LEVEL
