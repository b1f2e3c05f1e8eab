// prefetcher: reads memory ahead, line by line, during the products before those that need it. Without it the latency
// of memory stands between the packing and the products: a quarter of the time where A does not come from the cache.
#pragma once

#include "lowrank_core/integers.h"
#include "lowrank_core/simd/nest.h"
#include "lowrank_core/simd/vec.h"

namespace lowrank::LRC_LEVEL {
namespace {

class Prefetcher {
 public:
  // `turns`: how often lines() will be called; `beside` and `also` have none beside them.
  Prefetcher(const Ahead& ahead, int64_t turns, Prefetcher* beside = nullptr, Prefetcher* also = nullptr)
      : next_(ahead.data),
        end_(ahead.data + ahead.bytes),
        ahead_(ahead),
        left_(ahead.runs),
        pace_(ahead.runs == 0 ? 0 : int(ceil_div(ahead.runs * ceil_div(ahead.bytes, 64), larger(1, turns)))),
        beside_(beside),
        also_(also) {}

  int pace() const { return pace_; }

  // The next `count` lines, and as many of what is prefetched beside them as its pace asks for. Into L1 with kLocality
  // 3, into L2 with 2.
  template <int kLocality>
  LRC_INLINE void lines(int count) {
    own_lines<kLocality>(count);
    if (beside_) beside_->own_lines<kLocality>(beside_->pace_);
    if (also_) also_->own_lines<kLocality>(also_->pace_);
  }

 private:
  template <int kLocality>
  LRC_INLINE void own_lines(int count) {
    for (; count > 0 && left_ > 0; --count) step<kLocality>();
  }

  template <int kLocality>
  LRC_INLINE void step() {
    __builtin_prefetch(next_, 0, kLocality);
    next_ += 64;
    if (next_ < end_) return;
    next_ = end_ - ahead_.bytes + ahead_.stride;
    end_ = next_ + ahead_.bytes;
    --left_;
  }

  const char *next_, *end_;
  const Ahead ahead_;
  int64_t left_;
  const int pace_;
  Prefetcher *const beside_, *const also_;
};

}  // namespace
}  // namespace lowrank::LRC_LEVEL
