// Weights of which some lines are stepped by Adam, and the rest by its sign.
#include "lowrank_core/subspace_step_selected.h"

#include <algorithm>
#include <numeric>

#include "lowrank_core/buffer.h"
#include "lowrank_core/dense.h"
#include "subspace_step/job.h"

namespace lowrank::subspace_step {
namespace {

constexpr int64_t kTask = 1 << 15;  // entries that one task steps, at least

// So many lines of `length` entries that they are whole blocks of a codec, and worth a task.
int64_t lines_together(int64_t length) {
  const int64_t least = blockwise::kBlock / std::gcd(blockwise::kBlock, length);
  return least * std::max<int64_t>(1, kTask / (least * length));
}

// The directions of the lines that are selected, [count, n] or [m, count].
template <class T>
class Directions {
 public:
  Directions(const SelectedJob& job, const SelectedParams& params)
      : length_(job.rows ? job.w.cols : job.count),
        memory_((job.rows ? job.count : job.w.rows) * length_),
        params_(params.adam),
        adam_{.w = run(),
              .g = run(),
              .first = job.first,
              .second = job.second,
              .correction1 = job.correction1,
              .root2 = job.root2,
              .step = job.step,
              .seed = job.seed} {}

  // Of lines [begin, end), whose gradients are there.
  const T* of(int64_t begin, int64_t end) {
    plain_level().direct(adam_, params_, begin * length_, end * length_);
    return line(begin);
  }
  T* line(int64_t i) { return memory_.data() + i * length_; }

 private:
  Run run() { return {memory_.data(), dtype_of<T>::value, memory_.size()}; }

  const int64_t length_;
  Buffer<T> memory_;
  const PlainParams params_;
  const PlainJob adam_;
};

template <class T>
void step_rows(const SelectedJob& job, const SelectedParams& p) {
  Directions<T> directions(job, p);
  parallel_chunks(job.count, lines_together(job.w.cols), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      copy(row_major(directions.line(k), 1, job.w.cols), job.g.block(job.lines[k], 0, 1, job.w.cols));
    }
    directions.of(begin, end);
    for (int64_t k = begin; k < end; ++k) {
      selected_level().write(job, p, job.lines[k], job.lines[k] + 1, directions.line(k));
    }
  });
}

// Rows [begin, end) that are not selected.
void step_others(const SelectedJob& job, const SelectedParams& p, int64_t begin, int64_t end) {
  const int64_t* const last = job.lines + job.count;
  const int64_t* next = std::lower_bound(job.lines, last, begin);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t stop = next < last && *next < end ? *next : end;
    if (i < stop) selected_level().write(job, p, i, stop, nullptr);
    i = stop;
    if (next < last) ++next;
  }
}

template <class T>
void step_columns(const SelectedJob& job, const SelectedParams& p) {
  Directions<T> directions(job, p);
  const int64_t least = lines_together(job.count), whole = std::max<int64_t>(1, kTask / job.w.cols);
  const int64_t together = least < whole ? least * (whole / least) : least;
  parallel_chunks(job.w.rows, together, [&](int64_t begin, int64_t end) {
    selected_level().gather(job, begin, end, directions.line(begin));
    selected_level().write(job, p, begin, end, directions.of(begin, end));
  });
}

void step(const SelectedJob& job, const SelectedParams& p) {
  if (job.w.empty()) return;
  const bool doubles = job.w.dtype == DType::kFloat64;
  if (job.count > 0 && !job.rows) return doubles ? step_columns<double>(job, p) : step_columns<float>(job, p);
  if (job.count > 0) doubles ? step_rows<double>(job, p) : step_rows<float>(job, p);
  parallel_chunks(job.w.rows, std::max<int64_t>(1, kTask / job.w.cols),
                  [&](int64_t begin, int64_t end) { step_others(job, p, begin, end); });
}

}  // namespace

void selected_cpu(const std::vector<SelectedJob>& jobs, const SelectedParams& params) {
  for_each_job(jobs, [&](const SelectedJob& job) { step(job, params); });
}

}  // namespace lowrank::subspace_step
