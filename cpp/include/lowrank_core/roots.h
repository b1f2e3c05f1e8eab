// roots: square roots of many numbers, for steps that are to have torch's bits.
//
// torch takes those of float32 and float64 by MKL's vector library where it is built with it. They are off by a unit of
// the last place for about one number in 150, on other numbers by another processor, so no formula of ours is the same.
#pragma once

#include <cstdint>

namespace lowrank {

enum class Roots : uint8_t { kRounded, kMkl };

// to[i] <- sqrt(from[i]); `to` may be `from`.
template <class T>
using RootsOf = void (*)(int64_t n, const T* from, T* to);

// Those of torch's MKL, of float and double, or null where this process has no such library. Found once.
template <class T>
RootsOf<T> mkl_roots();

// While it lives, MKL computes on the calling thread alone. After torch.set_num_threads it starts a team of its own for
// 128 numbers or more, inside a task of ours, too: half a microsecond a call, as much as a thousand roots.
class OneMklThread {
 public:
  OneMklThread();
  ~OneMklThread();
  OneMklThread(const OneMklThread&) = delete;
  OneMklThread& operator=(const OneMklThread&) = delete;

 private:
  const int before_;
};

}  // namespace lowrank
