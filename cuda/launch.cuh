// launch: grid arithmetic and the check after every launch. Nothing here synchronises.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "lowrank_core/checks.h"

namespace lowrank::cuda {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

// Blocks for `count` items, capped: kernels walk on by the grid's size.
inline unsigned blocks_for(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return unsigned(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(op) + ": the CUDA launch failed: " + cudaGetErrorString(error));
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

}  // namespace lowrank::cuda
