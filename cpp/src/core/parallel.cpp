#include "lowrank_core/parallel.h"

#include <pthread.h>

#include <atomic>

namespace lowrank {
namespace {

std::atomic<bool> in_child{false};

// Registered as the library is loaded: a fork may come before the first kernel, and torch may have started threads.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { in_child.store(true); });

}  // namespace

bool forked() { return in_child.load(std::memory_order_relaxed); }

}  // namespace lowrank
