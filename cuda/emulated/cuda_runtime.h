// cuda_runtime: the part of CUDA that the kernels use, on the host, for tests on machines without a GPU. A grid runs
// block by block; the threads of a block are fibers that change where they wait, in an order that is drawn anew for
// each launch, as is the order of the blocks. What a GPU leaves undefined shows here: shared memory starts as NaN and
// has its exact size, threads that wait at different barriers are an error, and a missing barrier gives other results
// in another order. Not seen by nvcc, which has a file of this name itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define LRC_EMULATED 1

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
template <class F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

namespace lowrank::emulated {

// The number of a launch, which its orders are drawn from.
inline uint64_t next_launch() {
  static std::atomic<uint64_t> launches{1};
  return launches++;
}

template <class F>
void run(dim3 grid, dim3 threads, size_t shared, uint64_t seed, const F& body) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads.x == 0 || threads.x * threads.y * threads.z > 1024)
    throw std::logic_error("a launch has no blocks, no threads or more than 1024 of them");
  Block(grid, threads, shared, seed, body).run_grid();
}

inline void check_mask(unsigned mask) {
  if (mask != ~0u) throw std::logic_error("a shuffle must name the whole warp");
}

// What `lane(own lane)` of the warp has as `value`.
template <class T, class Lane>
T exchanged(unsigned mask, T value, const Lane& lane) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  check_mask(mask);
  Fiber& own = block().fiber();
  std::memcpy(&own.handed, &value, sizeof value);
  block().wait(Waiting::kForWarp);
  T found;
  std::memcpy(&found, &block().neighbour(lane(own.number % kWarp)).handed, sizeof found);
  block().wait(Waiting::kForWarp);
  return found;
}

}  // namespace lowrank::emulated

#define gridDim (::lowrank::emulated::block().grid())
#define blockDim (::lowrank::emulated::block().threads())
#define blockIdx (::lowrank::emulated::block().index())
#define threadIdx (::lowrank::emulated::block().thread())

inline void __syncthreads() { lowrank::emulated::block().wait(lowrank::emulated::Waiting::kForBlock); }
inline void __syncwarp(unsigned mask = ~0u) {
  lowrank::emulated::check_mask(mask);
  lowrank::emulated::block().wait(lowrank::emulated::Waiting::kForWarp);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
  return lowrank::emulated::exchanged(mask, value, [=](unsigned own) { return own ^ unsigned(with); });
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  return lowrank::emulated::exchanged(mask, value, [=](unsigned) { return unsigned(from) % lowrank::emulated::kWarp; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  return lowrank::emulated::exchanged(
      mask, value, [=](unsigned own) { return own + by < lowrank::emulated::kWarp ? own + by : own; });
}
template <class T>
T atomicAdd(T* place, T value) {
  return std::exchange(*place, T(*place + value));
}
