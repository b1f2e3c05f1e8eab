#include "lowrank_core/overlap.h"

#include <algorithm>
#include <cstdlib>

namespace lowrank {
namespace {

// The differences of addresses between elements: sums of x[k] stride[k], with every x[k] from -below[k] to above[k].
// Strides are positive, in bytes, largest first.
struct Differences {
  int rank = 0;
  std::array<int64_t, 2 * View::kMaxRank> stride{}, below{}, above{};

  void add(int64_t step, int64_t backward, int64_t forward) {
    if (step == 0 || (backward == 0 && forward == 0)) return;
    int at = 0;
    while (at < rank && stride[size_t(at)] > step) ++at;
    if (at == rank || stride[size_t(at)] != step) {
      for (int i = rank++; i > at; --i) {
        stride[size_t(i)] = stride[size_t(i - 1)];
        below[size_t(i)] = below[size_t(i - 1)];
        above[size_t(i)] = above[size_t(i - 1)];
      }
      stride[size_t(at)] = step;
      below[size_t(at)] = above[size_t(at)] = 0;
    }
    below[size_t(at)] += backward;
    above[size_t(at)] += forward;
  }
};

int64_t floor_divided(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// Whether one of the differences lies in [low, high]. With strides that nest, as those of slices do, each level tries
// two or three numbers; the search gives up after `kMostSteps`.
class Search {
 public:
  explicit Search(const Differences& d) : d_(d) {
    for (int k = d.rank - 1; k >= 0; --k) {
      least_[size_t(k)] = least_[size_t(k + 1)] - d.below[size_t(k)] * d.stride[size_t(k)];
      most_[size_t(k)] = most_[size_t(k + 1)] + d.above[size_t(k)] * d.stride[size_t(k)];
    }
  }

  // The numbers from `k` on, the first of them at least `first`.
  bool finds(int k, int64_t first, int64_t low, int64_t high) {
    if (k == d_.rank) return low <= 0 && high >= 0;
    if (++steps_ > kMostSteps) return true;
    const int64_t step = d_.stride[size_t(k)];
    const int64_t from = std::max(first, -floor_divided(most_[size_t(k + 1)] - low, step));
    const int64_t to = std::min(d_.above[size_t(k)], floor_divided(high - least_[size_t(k + 1)], step));
    for (int64_t x = from; x <= to; ++x) {
      if (finds(k + 1, first_of(k + 1), low - x * step, high - x * step)) return true;
    }
    return false;
  }

  int64_t first_of(int k) const { return k < d_.rank ? -d_.below[size_t(k)] : 0; }

 private:
  static constexpr int kMostSteps = 4096;
  const Differences& d_;
  std::array<int64_t, 2 * View::kMaxRank + 1> least_{}, most_{};  // sums that the numbers from k on can have
  int steps_ = 0;
};

int64_t bytes(const View& view, int i) { return std::abs(view.stride[size_t(i)]) * item_size(view.dtype); }

}  // namespace

Extent extent(const View& view) {
  if (view.size() == 0) return {};
  int64_t down = 0, up = item_size(view.dtype);
  for (int i = 0; i < view.rank; ++i) {
    const int64_t reach = (view.shape[size_t(i)] - 1) * bytes(view, i);
    (view.stride[size_t(i)] < 0 ? down : up) += reach;
  }
  const auto start = reinterpret_cast<uintptr_t>(view.data);
  return {start - uintptr_t(down), start + uintptr_t(up)};
}

bool overlaps_itself(const View& view) {
  if (view.contiguous()) return false;
  Differences d;
  for (int i = 0; i < view.rank; ++i) {
    const int64_t most = view.shape[size_t(i)] - 1;
    if (most > 0 && view.stride[size_t(i)] == 0) return true;
    d.add(bytes(view, i), most, most);
  }
  // One stride of two dimensions: steps that go up in one of them and down in the other.
  int found = 0;
  for (int i = 0; i < view.rank; ++i) found += view.shape[size_t(i)] > 1;
  if (found != d.rank) return true;
  const int64_t nearest = item_size(view.dtype) - 1;
  for (int k = 0; k < d.rank; ++k) {  // the first number that is not 0, from the largest stride on
    if (Search(d).finds(k, 1, -nearest, nearest)) return true;
  }
  return false;
}

bool overlap(const View& a, const View& b) {
  const Extent first = extent(a), second = extent(b);
  if (first.begin >= second.end || second.begin >= first.end) return false;
  Differences d;
  for (int i = 0; i < a.rank; ++i) d.add(bytes(a, i), 0, a.shape[size_t(i)] - 1);
  for (int i = 0; i < b.rank; ++i) d.add(bytes(b, i), b.shape[size_t(i)] - 1, 0);
  const int64_t apart = int64_t(second.begin - first.begin);
  Search search(d);
  return search.finds(0, search.first_of(0), apart - item_size(a.dtype) + 1, apart + item_size(b.dtype) - 1);
}

}  // namespace lowrank
