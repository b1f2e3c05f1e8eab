// launch: how a grid is started, the one place where that is written, and what kernels share: their threads' numbers
// and their shared memory. Nothing here waits for the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "lowrank_core/checks.h"
#include "lowrank_core/integers.h"

namespace lowrank::cuda {

constexpr int kThreads = 256, kWarp = 32;
constexpr int64_t kMaxBlocks = 1 << 16;
constexpr size_t kOrdinaryShared = 48 << 10;  // bytes of shared memory that a kernel has without asking

// Blocks for `count` threads, capped: kernels walk on by the grid's size.
inline unsigned blocks_for(int64_t count) {
  const int64_t blocks = ceil_div(count, kThreads);
  return unsigned(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

inline void check(const char* op, cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(op) + ": the CUDA launch failed: " + cudaGetErrorString(error));
}

// Starts `kernel` on the current device; `shared` bytes of shared memory for each block.
template <class... P, class... A>
void launch(const char* op, void (*kernel)(P...), dim3 grid, dim3 threads, size_t shared, void* stream,
            A... arguments) {
#if defined(LRC_EMULATED)
  (void)stream;
  emulated::run(grid, threads, shared, emulated::next_launch(), [&] { kernel(P(arguments)...); });
#else
  if (shared > kOrdinaryShared)
    check(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  // clang-format off
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(P(arguments)...);
  // clang-format on
#endif
  check(op, cudaGetLastError());
}

// Makes `device` current for the life of the guard.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    if (cudaGetDevice(&previous_) != cudaSuccess || cudaSetDevice(device) != cudaSuccess) {
      throw std::runtime_error("cuda: device " + std::to_string(device) + " cannot be used; is a driver installed?");
    }
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

// ---- inside kernels ----------------------------------------------------------------------------------------------

// The first item of this thread in a grid of one dimension, and the way to its next one.
__device__ inline int64_t first_item() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t item_stride() { return int64_t(gridDim.x) * blockDim.x; }
__device__ inline int lane() { return int(threadIdx.x % kWarp); }

// All of a block's shared memory: a launch gives sizeof(S) bytes.
template <class S>
__device__ S& shared() {
  static_assert(std::is_trivially_default_constructible_v<S> && std::is_trivially_destructible_v<S>);
#if defined(LRC_EMULATED)
  return *static_cast<S*>(emulated::block().shared());
#else
  extern __shared__ __align__(16) unsigned char memory[];
  return *reinterpret_cast<S*>(memory);
#endif
}

}  // namespace lowrank::cuda
