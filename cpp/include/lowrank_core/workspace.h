// workspace: memory that a thread keeps from one product to the next and from one call to the next, so that they do not
// pay for pages.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowrank {

// The kinds do not overlap; asking for a kind again may move what was handed out for it.
enum class Workspace : uint8_t { kPanelsA, kPanelsB, kTiles, kPartial };

// Memory of the calling thread, aligned to a page.
void* workspace(Workspace kind, size_t bytes);

// What a thread keeps of a kind at most once its part of a kernel has ended.
constexpr size_t kKeptBytes = size_t(8) << 20;

// Gives back what the calling thread holds beyond that. Nothing that workspace() returned to it may be in use.
void trim_workspace();

// The bytes that the calling thread holds.
size_t workspace_bytes();

// Memory of a buffer, aligned to a cache line. While no buffer uses it, the thread that gave it back keeps it: a page
// that is new costs more than what is computed with it.
struct Block {
  void* memory;
  size_t bytes;
};
Block take_block(size_t bytes);  // or somewhat more
void give_block(const Block& block);

// What a thread keeps of blocks at most: enough for 128 singular values of a 4096 x 4096 matrix.
constexpr size_t kKeptBlockBytes = size_t(32) << 20;

// Frees the oldest blocks until the calling thread keeps no more than `limit`.
void trim_blocks(size_t limit);
size_t block_bytes();

// Trims at the end of its life.
class WorkspaceScope {
 public:
  WorkspaceScope() = default;
  ~WorkspaceScope() { trim_workspace(); }
  WorkspaceScope(const WorkspaceScope&) = delete;
  WorkspaceScope& operator=(const WorkspaceScope&) = delete;
};

}  // namespace lowrank
