// The loop nest and the micro-kernel: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication"
// (ACM TOMS 34, 2008), section 4, with two changes. Where k is the contiguous direction of A, a panel of A is packed
// right before its only use and stays in L1; and every task packs the part of B that it needs (about 5 % of its time),
// so a product is one parallel region without a shared buffer. docs/adr/0002-gemm.md has the reasons and the figures.
#include "lowrank_core/integers.h"
#include "lowrank_core/simd/pack.h"

namespace lowrank::LRC_LEVEL {
namespace {

// Prefetches a slab line by line during the products before it. Without it the latency of memory stands between the
// packing and the products: a quarter of the time where A does not come from the cache.
class Prefetcher {
 public:
  static constexpr int kEvery = 4;  // steps along k from one line to the next: a panel of A takes 224 lines

  explicit Prefetcher(const Ahead& ahead, Prefetcher* then = nullptr)
      : next_(ahead.data), end_(ahead.data + ahead.bytes), ahead_(ahead), left_(ahead.runs), then_(then) {}

  LRC_INLINE void one_line() {
    if (left_ > 0) return step();
    if (then_ && then_->left_ > 0) then_->step();
  }

 private:
  LRC_INLINE void step() {
    __builtin_prefetch(next_);
    next_ += 64;
    if (next_ < end_) return;
    next_ = end_ - ahead_.bytes + ahead_.stride;
    end_ = next_ + ahead_.bytes;
    --left_;
  }

  const char *next_, *end_;
  const Ahead ahead_;
  int64_t left_;
  Prefetcher* const then_;  // follows when this one has come to its end
};

// ---- the micro-kernel --------------------------------------------------------------------------------------------

template <class P>
struct Panels {
  using Packed = typename P::Packed;
  using Acc = typename P::Acc;
  static constexpr int kLane = kLanes<Acc>;
  static constexpr int kColumns = kColumnVectors * kLane;
  static constexpr int kPaddedRows = (kRows + kLane - 1) / kLane * kLane;
  static constexpr int64_t kSizeA = int64_t(kPaddedRows) * kDepth, kSizeB = int64_t(kColumns) * kDepth;
  static constexpr int64_t kTile = int64_t(kRows) * kColumns;
  static constexpr int64_t kLongest = int64_t(kDepth) * P::kPerPacked;  // most elements along k in one panel
};

// tile [R rows][V vectors of kColumns] = or += A panel * B panel over `length` packed elements along k. The panel of A
// is [line][depth] or [depth][line]: a broadcast costs the same from both, so neither layout of A is transposed.
template <class P, int R, int V, bool kByDepth>
void micro_kernel(int64_t length, const typename P::Packed* a, const typename P::Packed* b, typename P::Acc* tile,
                  bool add, Prefetcher& prefetcher) {
  using Size = Panels<P>;
  using Sums = Vec<typename P::Acc>;
  using Right = Vec<typename P::Packed>;
  constexpr int64_t line_step = kByDepth ? kDepth : 1, depth_step = kByDepth ? 1 : Size::kPaddedRows;
  Sums sum[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) {
      sum[i][j] = add ? load_bits<Sums>(tile + i * Size::kColumns + j * Size::kLane) : Sums{};
    }
  }
  for (int64_t p = 0; p < length; ++p) {
    if (p % Prefetcher::kEvery == 0) prefetcher.one_line();
    Right right[V];
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) right[j] = load_bits<Right>(b + p * Size::kColumns + j * Size::kLane);
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
    for (int j = 0; j < V; ++j) store_bits(tile + i * Size::kColumns + j * Size::kLane, sum[i][j]);
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
Kernel<P> kernel_for(int rows, int columns, bool by_depth) {
  if (columns <= Panels<P>::kLane) return by_depth ? kernel_for<P, 1, true>(rows) : kernel_for<P, 1, false>(rows);
  return by_depth ? kernel_for<P, kColumnVectors, true>(rows) : kernel_for<P, kColumnVectors, false>(rows);
}

// ---- the loop nest -----------------------------------------------------------------------------------------------

struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

// Part `index` of `parts` nearly equal ones of [0, total).
Range part(int64_t total, int64_t index, int64_t parts) { return {total * index / parts, total * (index + 1) / parts}; }

// How a product is cut into tasks: blocks of rows and of columns, and, where those are few and k is long, slices of k
// whose partial sums are added in order afterwards. A function of the shape only, so the threads do not matter.
struct Partition {
  static constexpr int64_t kRowPanels = 32, kColumnPanels = 16;  // of a block: its parts of A, B and C share an L2
  static constexpr int64_t kTaskWork = int64_t(1) << 20;         // multiply-adds that are worth a task, about 10 us
  static constexpr int64_t kShare = 4;                           // parts that 2 and 4 threads share evenly
  static constexpr int64_t kMostTasks = 8, kEnoughPanels = 8;    // of a product that the blocks alone leave too few

  int64_t row_panels, column_panels;
  int64_t row_blocks, column_blocks, slices = 1;
  int64_t depth_blocks, depth;  // blocks along k and their length, the last one's may be less

  Partition(const Product& product, int64_t rows, int64_t columns, int64_t longest)
      : row_panels(ceil_div(product.m, rows)),
        column_panels(ceil_div(product.n, columns)),
        row_blocks(ceil_div(row_panels, kRowPanels)),
        column_blocks(ceil_div(column_panels, kColumnPanels)) {
    if (row_blocks > 2) row_blocks = round_up(row_blocks, kShare);
    // Where the blocks are fewer than tasks are worth their start: more blocks of rows while each has enough of them to
    // repay its own packing of B, else slices of k, else smaller blocks of rows.
    const int64_t worth = smaller(kMostTasks, product.m * product.n * product.k / kTaskWork);
    const int64_t wanted = smaller(kShare, worth) / column_blocks;
    row_blocks = larger(row_blocks, smaller(wanted, row_panels / kEnoughPanels));
    if (row_blocks < wanted) {
      slices = larger(1, smaller(worth / (row_blocks * column_blocks), product.k / (longest * 3 / 4)));
      if (slices == 1) row_blocks = smaller(wanted, row_panels);
    }
    // Nearly equal blocks, of even length for the pairs. Slices are so long that none is left without a block.
    const int64_t per_slice = larger(1, ceil_div(ceil_div(product.k, slices), longest));
    depth = round_up(ceil_div(product.k, slices * per_slice), 2);
    depth_blocks = product.k == 0 ? 1 : ceil_div(product.k, depth);
  }

  int64_t tasks() const { return row_blocks * column_blocks * slices; }
};

template <class P>
class Nest {
 public:
  explicit Nest(const Product& product)
      : product_(product), partition_(product, kRows, Size::kColumns, Size::kLongest), partial_(nullptr) {}

  void run() {
    const bool sliced = partition_.slices > 1;
    if (sliced) partial_ = memory<Acc>(Workspace::kPartial, partition_.slices * slice_size());
    for_each_task(partition_.tasks(), [](const void* nest, int64_t i) { self(nest).task(i); }, this);
    if (sliced)
      for_each_task(partition_.row_panels, [](const void* nest, int64_t i) { self(nest).add_slices(i); }, this);
  }

 private:
  using Size = Panels<P>;
  using Packed = typename P::Packed;
  using Acc = typename P::Acc;

  // What a task computes: row panels i, column panels j and blocks d along k, and the memory that it does so in.
  struct Task {
    Range i, j, d;
    int64_t group;  // panels of A that are packed at a time
    Packed *a, *b;
    Acc* tiles;

    Acc* tile(int64_t row_panel, int64_t column_panel) const {
      return tiles + ((row_panel - i.begin) * j.size() + column_panel - j.begin) * Size::kTile;
    }
  };

  void task(int64_t index) const {
    const int64_t slice = index % partition_.slices, block = index / partition_.slices;
    Task t;
    t.i = part(partition_.row_panels, block % partition_.row_blocks, partition_.row_blocks);
    t.j = part(partition_.column_panels, block / partition_.row_blocks, partition_.column_blocks);
    t.d = part(partition_.depth_blocks, slice, partition_.slices);
    // Across k all panels of the block are packed at once, so that memory is read in long runs.
    t.group = product_.a.depth_major ? 1 : t.i.size();
    t.a = memory<Packed>(Workspace::kPanelsA, t.group * Size::kSizeA);
    t.b = memory<Packed>(Workspace::kPanelsB, t.j.size() * Size::kSizeB);
    t.tiles = memory<Acc>(Workspace::kTiles, t.i.size() * t.j.size() * Size::kTile);
    for (int64_t d = t.d.begin; d < t.d.end; ++d) {
      const Slab b{
          t.j.begin * Size::kColumns, d * partition_.depth, length(d), int(t.j.size()), Size::kColumns, Size::kColumns};
      product_.b.by_outer(product_.b.load, b, t.b);
      for (int64_t i = t.i.begin; i < t.i.end; i += t.group) multiply_group(t, slice, i, d);
    }
  }

  void multiply_group(const Task& t, int64_t slice, int64_t first, int64_t d) const {
    pack_a(slab_a(first, t.group, d), t.a);
    Prefetcher operands(next_group(t, first, d));
    const bool last = d + 1 == t.d.end && !partial_;
    const int64_t packed = ceil_div(length(d), P::kPerPacked);
    for (int64_t i = first; i < first + t.group; ++i) {
      for (int64_t j = t.j.begin; j < t.j.end; ++j) {
        if (!wanted(i, j)) continue;
        Acc* const sums = partial_ ? partial(slice, i, j) : t.tile(i, j);
        Prefetcher prefetcher(last ? next_tile(t, i, j) : Ahead{}, &operands);
        const auto kernel = kernel_for<P>(rows(i), columns(j), product_.a.depth_major);
        kernel(packed, t.a + (i - first) * Size::kSizeA, t.b + (j - t.j.begin) * Size::kSizeB, sums, d > t.d.begin,
               prefetcher);
        if (last) finish(i, j, sums);
      }
    }
  }

  void add_slices(int64_t i) const {
    for (int64_t j = 0; j < partition_.column_panels; ++j) {
      if (!wanted(i, j)) continue;
      Acc* const total = partial(0, i, j);
      for (int64_t slice = 1; slice < partition_.slices; ++slice) {
        const Acc* const more = partial(slice, i, j);
        for (int64_t e = 0; e < Size::kTile; ++e) total[e] += more[e];
      }
      finish(i, j, total);
    }
  }

  void finish(int64_t i, int64_t j, const Acc* sums) const {
    const Tile<Acc> tile{sums, i * kRows, j * Size::kColumns, rows(i), columns(j), Size::kColumns};
    product_.epilogue.finish(product_.epilogue.self, &tile);
  }

  bool wanted(int64_t i, int64_t j) const {
    const Epilogue& epilogue = product_.epilogue;
    return !epilogue.wanted || epilogue.wanted(epilogue.self, i * kRows, j * Size::kColumns, columns(j));
  }

  Slab slab_a(int64_t i, int64_t count, int64_t d) const {
    const int width = product_.a.depth_major ? kRows : Size::kPaddedRows;
    return {i * kRows, d * partition_.depth, length(d), int(count), kRows, width};
  }

  void pack_a(const Slab& slab, Packed* panels) const {
    (product_.a.depth_major ? product_.a.by_depth : product_.a.by_outer)(product_.a.load, slab, panels);
  }

  Ahead next_group(const Task& t, int64_t first, int64_t d) const {
    const int64_t next = first + t.group;
    if (next < t.i.end) return product_.a.ahead(product_.a.load, slab_a(next, t.group, d));
    if (d + 1 < t.d.end) return product_.a.ahead(product_.a.load, slab_a(t.i.begin, t.group, d + 1));
    return {};
  }

  Ahead next_tile(const Task& t, int64_t i, int64_t j) const {
    const Epilogue& epilogue = product_.epilogue;
    if (!epilogue.ahead) return {};
    if (++j == t.j.end) j = t.j.begin, ++i;
    return i < t.i.end ? epilogue.ahead(epilogue.self, i * kRows, j * Size::kColumns, rows(i), columns(j)) : Ahead{};
  }

  int rows(int64_t i) const { return int(smaller(kRows, product_.m - i * kRows)); }
  int columns(int64_t j) const { return int(smaller(Size::kColumns, product_.n - j * Size::kColumns)); }
  int64_t length(int64_t d) const { return smaller(partition_.depth, product_.k - d * partition_.depth); }

  int64_t slice_size() const { return partition_.row_panels * partition_.column_panels * Size::kTile; }
  Acc* partial(int64_t slice, int64_t i, int64_t j) const {
    return partial_ + slice * slice_size() + (i * partition_.column_panels + j) * Size::kTile;
  }

  template <class T>
  static T* memory(Workspace kind, int64_t size) {
    return static_cast<T*>(workspace(kind, size_t(size) * sizeof(T)));
  }
  static const Nest& self(const void* nest) { return *static_cast<const Nest*>(nest); }

  const Product& product_;
  const Partition partition_;
  Acc* partial_;  // [slices][row_panels][column_panels] tiles where k is sliced, else null
};

}  // namespace

void multiply(Arithmetic arithmetic, const Product& product) {
  if (product.m == 0 || product.n == 0) return;
  if (arithmetic == Arithmetic::kFloat64) return Nest<Plain<double>>(product).run();
#if defined(__AVX512BF16__)
  if (arithmetic == Arithmetic::kPairs) return Nest<Pairs>(product).run();
#endif
  Nest<Plain<float>>(product).run();
}

}  // namespace lowrank::LRC_LEVEL
