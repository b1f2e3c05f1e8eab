#include "lowrank_core/workspace.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
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

// Blocks that no buffer uses, the oldest first.
class FreeBlocks {
 public:
  ~FreeBlocks();

  // The smallest that holds `bytes` without wasting more than that again; one of no memory if there is none.
  Block take(size_t bytes) {
    auto best = end();
    for (auto block = begin(); block != end(); ++block) {
      if (block->bytes >= bytes && block->bytes <= 2 * bytes && (best == end() || block->bytes < best->bytes))
        best = block;
    }
    return best == end() ? Block{} : remove(best);
  }

  void put(const Block& block) {
    trim(kKeptBlockBytes - block.bytes);
    if (count_ == blocks_.size()) std::free(remove(begin()).memory);
    blocks_[count_++] = block;
    bytes_ += block.bytes;
  }

  void trim(size_t limit) {
    while (bytes_ > limit) std::free(remove(begin()).memory);
  }

  size_t bytes() const { return bytes_; }

 private:
  Block* begin() { return blocks_.data(); }
  Block* end() { return blocks_.data() + count_; }

  Block remove(Block* at) {
    const Block block = *at;
    std::copy(at + 1, end(), at);
    --count_;
    bytes_ -= block.bytes;
    return block;
  }

  std::array<Block, 32> blocks_;
  size_t count_ = 0, bytes_ = 0;
};

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeepsBlocks = false;  // it would not see who uses a block after giving it back
#else
constexpr bool kKeepsBlocks = true;
#endif
constexpr size_t kSmallBlock = size_t(64) << 10;  // the allocator keeps these itself

thread_local FreeBlocks free_blocks;
thread_local bool blocks_gone = false;  // static buffers outlive the variables of the thread that ends the program

FreeBlocks::~FreeBlocks() {
  trim(0);
  blocks_gone = true;
}

bool is_kept(size_t bytes) { return kKeepsBlocks && bytes >= kSmallBlock && bytes <= kKeptBlockBytes && !blocks_gone; }

constexpr size_t kHugePage = size_t(2) << 20;

// Large ones of huge pages, if the system has them: 4 KB at a time it takes 2 us for each.
void* new_block(size_t bytes) {
  constexpr size_t line = 64;
  void* memory = nullptr;
  const bool large = bytes >= 2 * kHugePage;
  if (posix_memalign(&memory, large ? kHugePage : line, bytes) != 0) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (large) madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: without it the pages are small
#endif
  return memory;
}

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

Block take_block(size_t bytes) {
  constexpr size_t line = 64;
  Block block{};
  if (is_kept(bytes)) block = free_blocks.take(bytes);
  if (block.memory) return block;
  block.bytes = (std::max<size_t>(bytes, 1) + line - 1) / line * line;
  block.memory = new_block(block.bytes);
  return block;
}

void give_block(const Block& block) {
  if (is_kept(block.bytes)) return free_blocks.put(block);
  std::free(block.memory);
}

void trim_blocks(size_t limit) {
  if (!blocks_gone) free_blocks.trim(limit);
}

size_t block_bytes() { return blocks_gone ? 0 : free_blocks.bytes(); }

}  // namespace lowrank
