// nest_loop: the loops around a micro-kernel: Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication" (ACM TOMS 34, 2008), section 4, with two changes. Where k is the contiguous direction of A, a panel
// of A is packed right before its only use and stays in L1; and every thread packs the parts of B that its tasks need
// (about 5 % of its time), so a product is one parallel region without a shared buffer. docs/adr/0002-gemm.md has the
// reasons and the figures.
//
// A kernel K says what it multiplies and how:
//   Packed, Acc                types of the panels' elements and of the sums
//   kPerPacked                 positions along k in one packed element
//   kRows, kColumns            of a tile; kPaddedRows of a panel of A that is [depth][line]
//   kStep                      packed elements along k that it takes at a time: panels are filled with zeros up to it
//   kTurn                      packed elements along k from one call of Prefetcher::lines to the next
//   kByDepth                   wants every panel of A as [line][depth]
//   kGroupAcross               panels of A to pack at once where A is stored across k, at most
//   kRowPanels, kColumnPanels  of a block: its parts of A, B and C share an L2
//   kTaskWork                  multiply-adds that are worth a task, about 10 us
//   Scope                      lives while a thread multiplies
//   choose(rows, columns, by_depth)  the function for a tile of this size
#pragma once

#include "core/prefetcher.h"
#include "lowrank_core/integers.h"
#include "lowrank_core/simd/pack.h"

namespace lowrank::LRC_LEVEL {
namespace {

template <class K>
struct Panels {
  static constexpr int64_t kSizeA = int64_t(K::kPaddedRows) * kDepth, kSizeB = int64_t(K::kColumns) * kDepth;
  static constexpr int64_t kTile = int64_t(K::kRows) * K::kColumns;
  static constexpr int64_t kLongest = int64_t(kDepth) * K::kPerPacked;  // most positions along k in one panel
};

struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

// Part `index` of `parts` nearly equal ones of [0, total).
Range part(int64_t total, int64_t index, int64_t parts) { return {total * index / parts, total * (index + 1) / parts}; }

// How a product is cut into tasks: blocks of rows and of columns, and, where those are few and k is long, slices of k
// whose partial sums are added in order afterwards. A function of the shape only, so the threads do not matter.
struct Partition {
  static constexpr int64_t kShare = 4;                         // parts that 2 and 4 threads share evenly
  static constexpr int64_t kMostTasks = 8, kEnoughPanels = 8;  // of a product that the blocks alone leave too few

  int64_t row_panels, column_panels;
  int64_t row_blocks, column_blocks, slices = 1;
  int64_t depth_blocks, depth;  // blocks along k and their length, the last one's may be less

  template <class K>
  Partition(const Product& product, K)
      : row_panels(ceil_div(product.m, K::kRows)),
        column_panels(ceil_div(product.n, K::kColumns)),
        row_blocks(ceil_div(row_panels, K::kRowPanels)),
        column_blocks(ceil_div(column_panels, K::kColumnPanels)) {
    constexpr int64_t longest = Panels<K>::kLongest;
    if (row_blocks > 2) row_blocks = round_up(row_blocks, kShare);
    // Where the blocks are fewer than tasks are worth their start: more blocks of rows while each has enough of them to
    // repay its own packing of B, else slices of k, else smaller blocks of rows.
    const int64_t worth = smaller(kMostTasks, product.m * product.n * product.k / K::kTaskWork);
    const int64_t wanted = smaller(kShare, worth) / column_blocks;
    row_blocks = larger(row_blocks, smaller(wanted, row_panels / kEnoughPanels));
    if (row_blocks < wanted) {
      slices = larger(1, smaller(worth / (row_blocks * column_blocks), product.k / (longest * 3 / 4)));
      if (slices == 1) row_blocks = smaller(wanted, row_panels);
    }
    // Nearly equal blocks, of even length for the pairs. Slices are so long that none is left without a block.
    constexpr int64_t step = K::kStep * K::kPerPacked, unit = step > 2 ? step : 2;
    const int64_t per_slice = larger(1, ceil_div(ceil_div(product.k, slices), longest));
    depth = round_up(ceil_div(product.k, slices * per_slice), unit);
    depth_blocks = product.k == 0 ? 1 : ceil_div(product.k, depth);
  }

  int64_t tasks() const { return row_blocks * column_blocks * slices; }
};

constexpr int64_t kMostOfB = int64_t(512) << 10;  // bytes of panels that stay in an L2 beside those of A

// The part of B whose panels a thread holds.
struct HeldB {
  uint64_t nest = 0;  // the number of its product, from 1
  int64_t column_panel = 0, depth_block = 0;
};
thread_local HeldB held_b;
uint64_t products_begun = 0;

template <class K>
class Nest {
 public:
  explicit Nest(const Product& product)
      : product_(product),
        partition_(product, K()),
        by_depth_(K::kByDepth || product.a.depth_major),
        number_(__atomic_add_fetch(&products_begun, 1, __ATOMIC_RELAXED)) {}

  void run() {
    const bool sliced = partition_.slices > 1;
    if (sliced) partial_ = memory<Acc>(Workspace::kPartial, partition_.slices * slice_size());
    for_each_task(partition_.tasks(), [](const void* nest, int64_t i) { self(nest).task(i); }, this);
    if (sliced)
      for_each_task(partition_.row_panels, [](const void* nest, int64_t i) { self(nest).add_slices(i); }, this);
  }

 private:
  using Size = Panels<K>;
  using Packed = typename K::Packed;
  using Acc = typename K::Acc;

  // What a task computes: row panels i, column panels j and blocks d along k, and the memory that it does so in.
  struct Task {
    Range i, j, d;
    int64_t group;    // panels of A that are packed at a time
    bool all_of_b;    // every block along k of its part of B is packed
    bool rows_first;  // all blocks along k of a panel of A before the next panel, so that only its sums are held
    Packed *a, *b;
    Acc* tiles;

    int64_t blocks_of_b() const { return all_of_b ? d.size() : 1; }
    int64_t tiles_held() const { return d.size() == 1 ? 1 : (rows_first ? 1 : i.size()) * j.size(); }
    Packed* panels_of_b(int64_t block) const { return all_of_b ? b + (block - d.begin) * j.size() * Size::kSizeB : b; }
    Acc* tile(int64_t row_panel, int64_t column_panel) const {
      if (d.size() == 1) return tiles;
      const int64_t row = rows_first ? 0 : row_panel - i.begin;
      return tiles + (row * j.size() + column_panel - j.begin) * Size::kTile;
    }
  };

  void task(int64_t index) const {
    const typename K::Scope scope;
    const int64_t slice = index % partition_.slices, block = index / partition_.slices;
    Task t;
    t.i = part(partition_.row_panels, block % partition_.row_blocks, partition_.row_blocks);
    t.j = part(partition_.column_panels, block / partition_.row_blocks, partition_.column_blocks);
    t.d = part(partition_.depth_blocks, slice, partition_.slices);
    // Across k many panels of the block are packed at once, so that memory is read in long runs.
    t.group = product_.a.depth_major ? 1 : smaller(K::kGroupAcross, t.i.size());
    t.all_of_b = t.d.size() * t.j.size() * Size::kSizeB * int64_t(sizeof(Packed)) <= kMostOfB;
    t.rows_first = t.all_of_b && t.group == 1;
    t.a = memory<Packed>(Workspace::kPanelsA, t.group * Size::kSizeA);
    t.b = memory<Packed>(Workspace::kPanelsB, t.blocks_of_b() * t.j.size() * Size::kSizeB);
    t.tiles = memory<Acc>(Workspace::kTiles, t.tiles_held() * Size::kTile);
    if (t.all_of_b) pack_all_of_b(t);
    if (t.rows_first) {
      for (int64_t i = t.i.begin; i < t.i.end; i += t.group) {
        for (int64_t d = t.d.begin; d < t.d.end; ++d) multiply_group(t, slice, group(t, i), d);
      }
      return;
    }
    for (int64_t d = t.d.begin; d < t.d.end; ++d) {
      if (!t.all_of_b) pack_b(t, d);
      for (int64_t i = t.i.begin; i < t.i.end; i += t.group) multiply_group(t, slice, group(t, i), d);
    }
  }

  void pack_b(const Task& t, int64_t d) const {
    const Slab b{t.j.begin * K::kColumns, d * partition_.depth, length(d), int(t.j.size()), K::kColumns, K::kColumns};
    product_.b.by_outer(product_.b.load, b, t.panels_of_b(d));
  }

  // Unless this thread's last task was of this product and had the same part: tasks of one product follow each other.
  void pack_all_of_b(const Task& t) const {
    if (held_b.nest == number_ && held_b.column_panel == t.j.begin && held_b.depth_block == t.d.begin) return;
    for (int64_t d = t.d.begin; d < t.d.end; ++d) pack_b(t, d);
    held_b = {number_, t.j.begin, t.d.begin};
  }

  void multiply_group(const Task& t, int64_t slice, const Range& group, int64_t d) const {
    pack_a(slab_a(group, d), t.a);
    const bool last = d + 1 == t.d.end && !partial_;
    const int64_t packed = length(d) / K::kPerPacked, turns = packed / K::kTurn;
    const Packed* const b = t.panels_of_b(d);
    Prefetcher operands(next_group(t, group, d), turns * group.size() * t.j.size());
    for (int64_t i = group.begin; i < group.end; ++i) {
      for (int64_t j = t.j.begin; j < t.j.end; ++j) {
        if (!wanted(i, j)) continue;
        Acc* const sums = partial_ ? partial(slice, i, j) : t.tile(i, j);
        Prefetcher reads(last ? next_tile(product_.epilogue.read, t, i, j) : Ahead{}, turns);
        Prefetcher prefetcher(last ? next_tile(product_.epilogue.ahead, t, i, j) : Ahead{}, turns, &operands,
                              product_.epilogue.read ? &reads : nullptr);
        const auto kernel = K::choose(rows(i), columns(j), by_depth_);
        kernel(packed, t.a + (i - group.begin) * Size::kSizeA, b + (j - t.j.begin) * Size::kSizeB, sums, d > t.d.begin,
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
    const Tile<Acc> tile{sums, i * K::kRows, j * K::kColumns, rows(i), columns(j), K::kColumns};
    product_.epilogue.finish(product_.epilogue.self, &tile);
  }

  bool wanted(int64_t i, int64_t j) const {
    const Epilogue& epilogue = product_.epilogue;
    return !epilogue.wanted || epilogue.wanted(epilogue.self, i * K::kRows, j * K::kColumns, columns(j));
  }

  Slab slab_a(const Range& group, int64_t d) const {
    const int width = by_depth_ ? K::kRows : K::kPaddedRows;
    return {group.begin * K::kRows, d * partition_.depth, length(d), int(group.size()), K::kRows, width};
  }

  void pack_a(const Slab& slab, Packed* panels) const {
    (by_depth_ ? product_.a.by_depth : product_.a.by_outer)(product_.a.load, slab, panels);
  }

  Range group(const Task& t, int64_t first) const { return {first, smaller(first + t.group, t.i.end)}; }

  Ahead next_group(const Task& t, const Range& now, int64_t d) const {
    const bool last_rows = now.end >= t.i.end, last_depth = d + 1 >= t.d.end;
    if (last_rows && last_depth) return {};
    if (t.rows_first) return last_depth ? ahead_of_a(group(t, now.end), t.d.begin) : ahead_of_a(now, d + 1);
    return last_rows ? ahead_of_a(group(t, t.i.begin), d + 1) : ahead_of_a(group(t, now.end), d);
  }

  Ahead ahead_of_a(const Range& group, int64_t d) const { return product_.a.ahead(product_.a.load, slab_a(group, d)); }

  // What `ahead`, of the epilogue, says of the tile after (i, j).
  Ahead next_tile(decltype(Epilogue::ahead) ahead, const Task& t, int64_t i, int64_t j) const {
    if (!ahead) return {};
    if (++j == t.j.end) j = t.j.begin, ++i;
    if (i >= t.i.end) return {};
    return ahead(product_.epilogue.self, i * K::kRows, j * K::kColumns, rows(i), columns(j));
  }

  int rows(int64_t i) const { return int(smaller(K::kRows, product_.m - i * K::kRows)); }
  int columns(int64_t j) const { return int(smaller(K::kColumns, product_.n - j * K::kColumns)); }
  // Positions along k of a block's panels, with the zeros beyond the last one.
  int64_t length(int64_t d) const {
    const int64_t left = product_.k - d * partition_.depth;
    return smaller(partition_.depth, round_up(left, K::kStep * K::kPerPacked));
  }

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
  const bool by_depth_;     // panels of A are [line][depth]
  const uint64_t number_;   // no other product in this process has it
  Acc* partial_ = nullptr;  // [slices][row_panels][column_panels] tiles where k is sliced, else null
};

}  // namespace
}  // namespace lowrank::LRC_LEVEL
