// Weights that are not projected, and the check of gradients before a step.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "lowrank_core/parallel.h"
#include "subspace_step/level.h"

namespace lowrank::subspace_step {
namespace {

// Elements [begin, end) of entry `number` of a list.
struct Chunk {
  size_t number;
  int64_t begin, end;
};

// Elements of one task. A processor takes up the streams of memory anew with every task: shorter ones cost a tenth.
constexpr int64_t kTask = 4 * kChunk;

// All entries of a list, in chunks of one task each.
std::vector<Chunk> chunks_of(const std::vector<Run>& list) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < list.size(); ++i) {
    for (int64_t begin = 0; begin < list[i].size; begin += kTask) {
      chunks.push_back({i, begin, std::min(begin + kTask, list[i].size)});
    }
  }
  return chunks;
}

}  // namespace

void plain_cpu(const std::vector<PlainJob>& jobs, const PlainParams& params) {
  std::vector<Run> weights;
  for (const PlainJob& job : jobs) weights.push_back(job.w);
  const std::vector<Chunk> chunks = chunks_of(weights);
  parallel_for(int64_t(chunks.size()), [&](int64_t i) {
    const Chunk& c = chunks[chunks.size() - 1 - size_t(i)];  // backwards: their gradients were looked at last
    plain_level().step(jobs[c.number], params, c.begin, c.end);
  });
}

std::vector<int64_t> nonfinite_cpu(const std::vector<Run>& runs) {
  std::vector<std::atomic<bool>> wrong(runs.size());
  const std::vector<Chunk> chunks = chunks_of(runs);
  parallel_for(int64_t(chunks.size()), [&](int64_t i) {
    const Chunk& c = chunks[size_t(i)];
    const Run& run = runs[c.number];
    const char* from = static_cast<const char*>(run.data) + c.begin * item_size(run.dtype);
    if (!moment_level().finite(from, run.dtype, c.end - c.begin)) wrong[c.number] = true;
  });
  std::vector<int64_t> found;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (wrong[i]) found.push_back(int64_t(i));
  }
  return found;
}

std::vector<double> norms_cpu(const std::vector<Matrix>& matrices) {
  std::vector<double> norms(matrices.size());
  parallel_for(int64_t(matrices.size()), [&](int64_t i) {
    const Matrix& x = matrices[size_t(i)];
    std::vector<double> sums(size_t(x.cols));
    weight_level().add_column_squares(sums.data(), x);
    norms[size_t(i)] = std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0));
  });
  return norms;
}

}  // namespace lowrank::subspace_step
