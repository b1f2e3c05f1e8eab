// block: a block of threads on the host, for cuda_runtime.h beside this file. The threads are fibers that change where
// they wait.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned along_x = 1, unsigned along_y = 1, unsigned along_z = 1) : x(along_x), y(along_y), z(along_z) {}
};

namespace lowrank::emulated {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 128 << 10;

enum class Waiting { kNot, kForBlock, kForWarp, kEnded };

// A place in a program to come back to. AddressSanitizer has to be told of stacks, which it follows by contexts alone;
// without it jumps are used, which do not call the kernel.
#if defined(__SANITIZE_ADDRESS__)
struct Context {
  ucontext_t place{};
  void* fake_stack = nullptr;
  const void* stack = nullptr;
  size_t bytes = 0;
};
#else
struct Context {
  jmp_buf place;
};
#endif

// One thread of a block, on a stack of its own.
struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started = false;  // it goes from block to block, and from launch to launch
  unsigned number = 0;
  Waiting waiting = Waiting::kNot;
  uint64_t handed = 0;  // what it shows the other threads of its warp
};

// Those of this thread of the host.
inline std::vector<Fiber>& pool(size_t count) {
  static thread_local std::vector<Fiber> fibers;
  while (fibers.size() < count) {
    fibers.emplace_back();
    fibers.back().number = unsigned(fibers.size() - 1);
  }
  return fibers;
}

// Orders are drawn from it; the same launch of the same program draws the same.
class Draw {
 public:
  explicit Draw(uint64_t seed) : state_(seed) {}

  template <class T>
  void shuffle(std::vector<T>& list) {
    for (size_t i = list.size(); i > 1; --i) std::swap(list[i - 1], list[below(i)]);
  }

 private:
  size_t below(size_t count) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return size_t(state_ >> 33) % count;
  }
  uint64_t state_;
};

class Block {
 public:
  Block(dim3 grid, dim3 threads, size_t shared, uint64_t seed, std::function<void()> body)
      : grid_(grid),
        threads_(threads),
        shared_bytes_(shared),
        draw_(seed),
        body_(std::move(body)),
        count_(size_t(threads.x) * threads.y * threads.z),
        fibers_(pool(1024)) {}

  static Block*& current() {
    static thread_local Block* block = nullptr;
    return block;
  }

  void run_grid() {
    std::vector<uint64_t> numbers(uint64_t(grid_.x) * grid_.y * grid_.z);
    std::iota(numbers.begin(), numbers.end(), 0);
    draw_.shuffle(numbers);
    Block* const outer = std::exchange(current(), this);
    try {
      for (const uint64_t number : numbers) {
        index_ = {unsigned(number % grid_.x), unsigned(number / grid_.x % grid_.y),
                  unsigned(number / grid_.x / grid_.y)};
        run();
      }
    } catch (...) {
      current() = outer;
      throw;
    }
    current() = outer;
  }

  void wait(Waiting what) {
    now_->waiting = what;
    leave(*now_);
  }

  dim3 grid() const { return grid_; }
  dim3 threads() const { return threads_; }
  dim3 index() const { return index_; }
  dim3 thread() const {
    const unsigned i = now_->number;
    return {i % threads_.x, i / threads_.x % threads_.y, i / threads_.x / threads_.y};
  }
  void* shared() { return shared_.get(); }
  Fiber& fiber() { return *now_; }
  // The one of the same warp, `lane` of it.
  Fiber& neighbour(unsigned lane) {
    const size_t at = now_->number / kWarp * kWarp + lane;
    if (lane >= kWarp || at >= count_) throw std::logic_error("a shuffle reads a lane that does not exist");
    return fibers_[at];
  }

 private:
  void run() {
    shared_.reset(new char[shared_bytes_]);  // of its exact size, for AddressSanitizer
    std::memset(shared_.get(), 0xFF, shared_bytes_);
    for (size_t i = 0; i < count_; ++i) fibers_[i].waiting = Waiting::kNot;
    std::vector<size_t> order(count_);
    std::iota(order.begin(), order.end(), 0);
    for (;;) {
      draw_.shuffle(order);
      bool ran = false;
      for (const size_t i : order) {
        if (fibers_[i].waiting != Waiting::kNot) continue;
        ran = true;
        enter(fibers_[i]);
        if (error_) {
          forget();
          std::rethrow_exception(std::exchange(error_, nullptr));
        }
      }
      for (size_t first = 0; first < count_; first += kWarp)
        release(first, std::min(first + kWarp, count_), Waiting::kForWarp);
      release(0, count_, Waiting::kForBlock);
      const auto ended = [](const Fiber& fiber) { return fiber.waiting == Waiting::kEnded; };
      if (std::all_of(fibers_.begin(), fibers_.begin() + std::ptrdiff_t(count_), ended)) return;
      if (!ran) refuse("threads of a block wait at different barriers");
    }
  }

  // Those that are inside a kernel will not come back to it.
  void forget() {
    for (size_t i = 0; i < count_; ++i) fibers_[i].started = false;
  }
  [[noreturn]] void refuse(const char* what) {
    forget();
    throw std::logic_error(what);
  }

  // Lets go of those of [first, last) that wait for `what`, if all that have not ended do.
  void release(size_t first, size_t last, Waiting what) {
    size_t there = 0, alive = 0;
    for (size_t i = first; i < last; ++i) {
      alive += fibers_[i].waiting != Waiting::kEnded;
      there += fibers_[i].waiting == what;
    }
    if (there == 0 || there < alive) return;
    if (alive < last - first) refuse("a thread ended before a barrier that others wait at");
    for (size_t i = first; i < last; ++i) fibers_[i].waiting = Waiting::kNot;
  }

  // What a fiber does: the kernel, once for each block that it is entered for.
  static void main() {
    for (arrived(nullptr);;) {
      try {
        current()->body_();
      } catch (...) {
        current()->error_ = std::current_exception();
      }
      current()->wait(Waiting::kEnded);
    }
  }

  // ---- changing stacks

  void enter(Fiber& fiber) {
    now_ = &fiber;
    if (!fiber.started) {
      fiber.started = true;
      start(fiber);
    } else {
      change(scheduler_, fiber.context);
    }
  }
  void leave(Fiber& fiber) { change(fiber.context, scheduler_); }

#if defined(__SANITIZE_ADDRESS__)
  void start(Fiber& fiber) {
    fiber.context = {};
    fiber.context.stack = fiber.stack.get();
    fiber.context.bytes = kStack;
    getcontext(&fiber.context.place);
    fiber.context.place.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.place.uc_stack.ss_size = kStack;
    fiber.context.place.uc_link = nullptr;
    makecontext(&fiber.context.place, &Block::main, 0);
    change(scheduler_, fiber.context);
  }
  static void change(Context& from, Context& to) {
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.bytes);
    swapcontext(&from.place, &to.place);
    arrived(from.fake_stack);
  }
  // A fiber is always entered from the stack of the block that runs.
  static void arrived(void* fake_stack) {
    Context& scheduler = current()->scheduler_;
    const void* stack = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(fake_stack, &stack, &bytes);
    if (scheduler.stack) return;
    scheduler.stack = stack;
    scheduler.bytes = bytes;
  }
#else
  void start(Fiber& fiber) {
    ucontext_t here, there;
    getcontext(&there);
    there.uc_stack.ss_sp = fiber.stack.get();
    there.uc_stack.ss_size = kStack;
    there.uc_link = nullptr;
    makecontext(&there, &Block::main, 0);
    if (_setjmp(scheduler_.place) == 0) swapcontext(&here, &there);
  }
  static void change(Context& from, Context& to) {
    if (_setjmp(from.place) == 0) _longjmp(to.place, 1);
  }
  static void arrived(void*) {}
#endif

  const dim3 grid_, threads_;
  dim3 index_;
  const size_t shared_bytes_;
  std::unique_ptr<char[]> shared_;
  Draw draw_;
  const std::function<void()> body_;
  const size_t count_;
  std::vector<Fiber>& fibers_;
  Fiber* now_ = nullptr;
  Context scheduler_{};
  std::exception_ptr error_;
};

inline Block& block() { return *Block::current(); }

}  // namespace lowrank::emulated
