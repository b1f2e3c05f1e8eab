// The emulated GPU: it runs right kernels as a GPU does, and shows the faults that a GPU would hide. Each planted fault
// is one that kernels are written with; what memory does not show is left to AddressSanitizer.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "../cpp/check.h"
#include "launch.cuh"

namespace lowrank {
namespace {

constexpr int kLaunches = 16;  // orders that are tried of a faulty kernel

template <class F>
std::string refusal(const F& f) {
  try {
    f();
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "";
}

// ---- right kernels -----------------------------------------------------------------------------------------------

__global__ void number_threads(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  atomicAdd(out + block * blockDim.x * blockDim.y * blockDim.z + thread, 1);
}

void every_thread_of_every_block_runs_once() {
  const dim3 grid(3, 2, 2), threads(4, 3, 2);
  std::vector<int> out(12 * 24);
  cuda::launch("number", number_threads, grid, threads, 0, nullptr, out.data());
  CHECK(std::all_of(out.begin(), out.end(), [](int count) { return count == 1; }));
}

__global__ void walk(int* out, int64_t count) {
  for (int64_t i = cuda::first_item(); i < count; i += cuda::item_stride()) out[i] += 1;
}

void a_grid_walks_over_all_items() {
  for (const int64_t count : {1, 255, 256, 257, 5000}) {
    std::vector<int> out(static_cast<size_t>(count));
    cuda::launch("walk", walk, cuda::blocks_for(std::min<int64_t>(count, 512)), cuda::kThreads, 0, nullptr, out.data(),
                 count);
    CHECK(std::all_of(out.begin(), out.end(), [](int times) { return times == 1; }));
  }
}

__global__ void shuffles(int* xored, int* from, int* down) {
  const int own = int(threadIdx.x);
  xored[own] = __shfl_xor_sync(~0u, own, 5);
  from[own] = __shfl_sync(~0u, own, 7);
  down[own] = __shfl_down_sync(~0u, own, 3u);
}

void lanes_read_each_other() {
  std::vector<int> xored(64), from(64), down(64);
  cuda::launch("shuffles", shuffles, 1, 64, 0, nullptr, xored.data(), from.data(), down.data());
  for (int i = 0; i < 64; ++i) {
    const int first = i / 32 * 32, lane = i % 32;
    CHECK(xored[size_t(i)] == first + (lane ^ 5) && from[size_t(i)] == first + 7);
    CHECK(down[size_t(i)] == (lane + 3 < 32 ? i + 3 : i));
  }
}

// ---- planted faults ----------------------------------------------------------------------------------------------

struct Parts {
  float of_warp[cuda::kThreads / cuda::kWarp];
};

template <bool kBarrier>
__global__ void sum(const float* x, float* out) {
  Parts& parts = cuda::shared<Parts>();
  float value = x[threadIdx.x];
  for (int with = 16; with > 0; with /= 2) value += __shfl_xor_sync(~0u, value, with);
  if (cuda::lane() == 0) parts.of_warp[threadIdx.x / cuda::kWarp] = value;
  if (kBarrier) __syncthreads();
  if (threadIdx.x > 0) return;
  float total = 0.0f;
  for (const float part : parts.of_warp) total += part;
  *out = total;
}

template <bool kBarrier>
int right_sums() {
  const std::vector<float> x(cuda::kThreads, 1.0f);
  int right = 0;
  for (int i = 0; i < kLaunches; ++i) {
    float out = 0.0f;
    cuda::launch("sum", sum<kBarrier>, 1, cuda::kThreads, sizeof(Parts), nullptr, x.data(), &out);
    right += out == float(cuda::kThreads);
  }
  return right;
}

void a_missing_barrier_shows() {
  CHECK(right_sums<true>() == kLaunches);
  CHECK(right_sums<false>() < kLaunches);
}

struct Slot {
  int last;
};

// Which thread is the last to write is up to the GPU.
__global__ void race(int* out) {
  Slot& slot = cuda::shared<Slot>();
  slot.last = int(threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) *out = slot.last;
}

void a_race_on_shared_memory_shows() {
  std::set<int> found;
  for (int i = 0; i < kLaunches; ++i) {
    int out = -1;
    cuda::launch("race", race, 1, 64, sizeof(Slot), nullptr, &out);
    found.insert(out);
  }
  CHECK(found.size() > 1);
}

// Each block adds to what the others wrote: right only if they came in order.
__global__ void chain_of_blocks(int* out) {
  if (threadIdx.x == 0) out[blockIdx.x + 1] = out[blockIdx.x] + 1;
}

void an_order_of_blocks_shows() {
  int right = 0;
  for (int i = 0; i < kLaunches; ++i) {
    std::vector<int> out(9);
    cuda::launch("chain", chain_of_blocks, 8, 1, 0, nullptr, out.data());
    right += out[8] == 8;
  }
  CHECK(right < kLaunches);
}

__global__ void read_unwritten(float* out) { *out = cuda::shared<Parts>().of_warp[3]; }

void shared_memory_that_nobody_wrote_is_nan() {
  float out = 0.0f;
  cuda::launch("unwritten", read_unwritten, 1, 1, sizeof(Parts), nullptr, &out);
  CHECK(std::isnan(out));
}

__global__ void barrier_of_half() {
  if (threadIdx.x % 2 == 0) __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncwarp();
    if (threadIdx.x == 32) __syncwarp();
    __syncthreads();
  }
}
__global__ void shuffle_of_some(int* out) { out[threadIdx.x] = __shfl_xor_sync(3u, 1, 1); }
__global__ void shuffle_out_of_the_block(int* out) { out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 16); }

void barriers_that_not_all_reach_are_refused() {
  std::vector<int> out(32);
  const auto one = [](auto* kernel, unsigned threads, auto... arguments) {
    return refusal([&] { cuda::launch("faulty", kernel, 1, threads, 0, nullptr, arguments...); });
  };
  CHECK(one(barrier_of_half, 64).find("ended before a barrier") != std::string::npos);
  CHECK(one(two_barriers, 64).find("different barriers") != std::string::npos);
  CHECK(one(shuffle_of_some, 32, out.data()).find("the whole warp") != std::string::npos);
  CHECK(one(shuffle_out_of_the_block, 8, out.data()).find("does not exist") != std::string::npos);
  CHECK(one(barrier_of_half, 2048).find("more than 1024") != std::string::npos);
}

// One item too many.
__global__ void off_by_one(float* out, int64_t count) {
  for (int64_t i = cuda::first_item(); i <= count; i += cuda::item_stride()) out[i] = 1.0f;
}

#if defined(__SANITIZE_ADDRESS__)
__global__ void past_shared_memory(float* out) {
  float* const parts = cuda::shared<Parts>().of_warp;
  parts[threadIdx.x] = 1.0f;
  __syncthreads();
  *out = parts[0];
}
#endif

// Whether AddressSanitizer, or nothing, ends a process that runs `f`.
template <class F>
bool ends(const F& f) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    f();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status != 0;
}

void memory_beside_an_array_is_guarded() {
#if defined(__SANITIZE_ADDRESS__)
  CHECK(ends([] {
    std::vector<float> out(300);
    cuda::launch("off by one", off_by_one, 2, cuda::kThreads, 0, nullptr, out.data(), int64_t(300));
  }));
  CHECK(ends([] {
    float out = 0.0f;
    cuda::launch("past", past_shared_memory, 1, cuda::kThreads, sizeof(Parts), nullptr, &out);
  }));
#endif
  CHECK(!ends([] {
    std::vector<float> out(301);
    cuda::launch("off by one", off_by_one, 2, cuda::kThreads, 0, nullptr, out.data(), int64_t(300));
  }));
}

}  // namespace
}  // namespace lowrank

int main() {
  using namespace lowrank;
  every_thread_of_every_block_runs_once();
  a_grid_walks_over_all_items();
  lanes_read_each_other();
  a_missing_barrier_shows();
  a_race_on_shared_memory_shows();
  an_order_of_blocks_shows();
  shared_memory_that_nobody_wrote_is_nan();
  barriers_that_not_all_reach_are_refused();
  memory_beside_an_array_is_guarded();
  return testing::finish();
}
