#include "lowrank_core/workspace.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace lowrank {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Held {
  std::unique_ptr<void, Free> memory;
  size_t bytes = 0;
};

constexpr size_t kKinds = 4, kPage = 4096;
thread_local Held held[kKinds];

}  // namespace

void* workspace(Workspace kind, size_t bytes) {
  Held& buffer = held[size_t(kind)];
  if (buffer.bytes < bytes) {
    buffer = {};
    const size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    buffer.memory.reset(std::aligned_alloc(kPage, rounded));
    if (!buffer.memory) throw std::bad_alloc();
    buffer.bytes = rounded;
  }
  return buffer.memory.get();
}

void trim_workspace() {
  for (Held& buffer : held) {
    if (buffer.bytes > kKeptBytes) buffer = {};
  }
}

size_t workspace_bytes() {
  size_t bytes = 0;
  for (const Held& buffer : held) bytes += buffer.bytes;
  return bytes;
}

}  // namespace lowrank
