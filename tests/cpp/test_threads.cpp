// Threads, instruction-set levels, and what a thread brings into a kernel and takes out of it.
#include "lowrank_core/parallel.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/checks.h"
#include "lowrank_core/isa.h"

namespace lowrank {
namespace {

void threads() {
  for (const int count : {1, 3}) {
    omp_set_num_threads(count);
    CHECK(max_threads() == count);
    std::vector<std::atomic<int>> seen(1000);
    parallel_for(1000, [&](int64_t i) { ++seen[size_t(i)]; });
    CHECK(std::all_of(seen.begin(), seen.end(), [](const auto& n) { return n == 1; }));
    parallel_for(-3, [&](int64_t) { CHECK(false); });

    std::atomic<int64_t> covered{0}, nested{0};
    parallel_chunks(1001, 10, [&](int64_t begin, int64_t end) {
      covered += end - begin;
      parallel_for(3, [&](int64_t) { ++nested; });
    });
    CHECK(covered == 1001 && nested == 3 * 101);

    std::atomic<int> ended{0};
    std::string caught;
    try {
      parallel_for(50, [&](int64_t i) {
        ++ended;
        if (i == 7) throw std::runtime_error("body 7");
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    CHECK(caught == "body 7" && (count == 1 || ended == 50));
  }
}

void levels() {
  const std::vector<std::string> names = isa_levels();
  CHECK(!names.empty() && names[0] == "generic" && names.back() == name(detected_isa()));
  const std::string before = name(isa());
  for (const std::string& level : names) {
    set_isa(level);
    CHECK(name(isa()) == level);
  }
  const std::string text = [] {
    try {
      set_isa("sse9");
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  }();
  CHECK(text.find("isa: the level must be one of generic") == 0 && text.find("got 'sse9'") != std::string::npos);
  CHECK(name(isa()) == names.back());
  set_isa(before);
}

// The sum depends on the direction of rounding, the product on what becomes of denormals.
struct Seen {
  double sum, product;
  bool operator==(const Seen&) const = default;
};
Seen see() {
  const volatile double big = 1.0, small = 1e-20, tiny = 1e-200;
  return {big + small, tiny * 1e-115};
}

void a_body_sees_the_default_float_environment() {
  const Seen ordinary = see();
  CHECK(ordinary.sum == 1.0 && ordinary.product > 0.0);
  std::fesetround(FE_UPWARD);
  const Seen upward = see();
  CHECK(upward.sum > 1.0);
  for (const int count : {1, 3}) {
    omp_set_num_threads(count);
#pragma omp parallel
    std::fesetround(FE_UPWARD);  // threads keep the mode in which they were started, or that a body has left
    std::vector<Seen> seen(64);
    parallel_for(64, [&](int64_t i) { seen[size_t(i)] = see(); });
    std::atomic<int> kept{0};
#pragma omp parallel
    kept += std::fegetround() == FE_UPWARD;
    CHECK(kept == count);
    CHECK(std::all_of(seen.begin(), seen.end(), [&](const Seen& s) { return s == ordinary; }));
    CHECK(see() == upward);
    try {
      const FloatEnvironment environment;
      parallel_for(4, [](int64_t) { throw std::runtime_error("body"); });
    } catch (const std::runtime_error&) {
    }
    CHECK(see() == upward);
  }
  std::fesetround(FE_TONEAREST);
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);  // flush to zero, denormals are zero
  CHECK(see().product == 0.0);
  {
    const FloatEnvironment environment;
    CHECK(see() == ordinary);
  }
  CHECK(see().product == 0.0);
  _mm_setcsr(_mm_getcsr() & ~0x8040u);
#elif defined(__aarch64__)
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  __asm__ volatile("msr fpcr, %0" ::"r"(mode | (uint64_t(1) << 24)));
  CHECK(see().product == 0.0);
  {
    const FloatEnvironment environment;
    CHECK(see() == ordinary);
  }
  CHECK(see().product == 0.0);
  __asm__ volatile("msr fpcr, %0" ::"r"(mode));
#endif
}

void a_level_does_not_change_on_the_way() {
  const std::string before = name(isa());
  const Isa lowest = Isa::kGeneric, highest = detected_isa();
  set_isa(name(highest));
  for (const int count : {1, 3}) {
    omp_set_num_threads(count);
    std::vector<Isa> seen(64);
    const LevelScope scope(highest);
    parallel_for(64, [&](int64_t i) {
      set_isa(name(lowest));
      seen[size_t(i)] = isa();
    });
    CHECK(std::all_of(seen.begin(), seen.end(), [&](Isa level) { return level == highest; }));
    CHECK(isa() == highest);
  }
  CHECK(isa() == lowest);
  set_isa(before);
}

void a_workspace_is_kept_while_it_is_small() {
  CHECK(workspace(Workspace::kTiles, 100) == workspace(Workspace::kTiles, 4096));
  workspace(Workspace::kTiles, kKeptBytes + 1);
  workspace(Workspace::kPartial, 4096);
  const size_t held = workspace_bytes();
  trim_workspace();
  CHECK(held > kKeptBytes && workspace_bytes() >= 4096 && workspace_bytes() + kKeptBytes < held);
  for (const int count :
       {1, 3}) {  // other threads give back at once; the calling one may be in the middle of a product
    omp_set_num_threads(count);
    workspace(Workspace::kTiles, kKeptBytes + 1);
    parallel_for(16, [&](int64_t) { workspace(Workspace::kTiles, kKeptBytes + 1); });
    CHECK(workspace_bytes() > kKeptBytes);
    std::atomic<int> large{0};
    parallel_for(16, [&](int64_t) { large += omp_get_thread_num() != 0 && workspace_bytes() > kKeptBytes; });
    CHECK(large == 0);
    trim_workspace();
  }
}

void a_thread_keeps_the_blocks_of_buffers() {
#if !defined(__SANITIZE_ADDRESS__)
  constexpr int64_t mega = 1 << 20;
  trim_blocks(0);
  char* first = nullptr;
  {
    Buffer<char> one(4 * mega), other(2 * mega);
    first = one.data();
    CHECK(block_bytes() == 0 && reinterpret_cast<uintptr_t>(first) % 64 == 0);
  }
  CHECK(block_bytes() == 6 * mega);
  {
    CHECK(Buffer<char>(4 * mega - 100).data() == first);
  }  // not much more than is needed
  {
    CHECK(Buffer<char>(mega - 1).data() != first);
  }  // twice as much and more stays
  {
    CHECK(Buffer<float>(mega / 4 * 3).data() != nullptr);
  }  // 3 MB of the 4
  CHECK(block_bytes() == 7 * mega);  // each at its own size
  {
    Buffer<char> moved = Buffer<char>(100), last(kKeptBlockBytes - 2 * mega);
  }
  CHECK(block_bytes() <= kKeptBlockBytes && block_bytes() >= kKeptBlockBytes - 2 * mega);
  {
    Buffer<char> larger(int64_t(kKeptBlockBytes) + 1);
  }
  CHECK(block_bytes() <= kKeptBlockBytes);
  omp_set_num_threads(3);
  std::atomic<int> large{0};
  parallel_for(16, [&](int64_t) { Buffer<char>(12 * mega); });
  parallel_for(16, [&](int64_t) { large += omp_get_thread_num() != 0 && block_bytes() > kKeptBytes; });
  CHECK(large == 0);
  trim_blocks(0);
  CHECK(block_bytes() == 0);
#endif
}

// Last: the child of a process that had threads must never start any.
void a_forked_child_computes() {
  omp_set_num_threads(3);
  const auto sum = [] {
    std::atomic<int64_t> total{0};
    parallel_for(100, [&](int64_t i) { total += i; });
    return total.load();
  };
  CHECK(sum() == 4950 && !forked() && max_threads() == 3);
  const auto run = [](const auto& body) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // instead of waiting for ever
      _exit(body() ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  };
  CHECK(run([&] { return forked() && max_threads() == 1 && sum() == 4950; }));
  CHECK(run([&] { return run([&] { return forked() && sum() == 4950; }) && sum() == 4950; }));
  CHECK(!forked() && max_threads() == 3 && sum() == 4950);
}

}  // namespace
}  // namespace lowrank

int main() {
  lowrank::threads();
  lowrank::levels();
  lowrank::a_body_sees_the_default_float_environment();
  lowrank::a_level_does_not_change_on_the_way();
  lowrank::a_workspace_is_kept_while_it_is_small();
  lowrank::a_thread_keeps_the_blocks_of_buffers();
  lowrank::a_forked_child_computes();
  return lowrank::testing::finish();
}
