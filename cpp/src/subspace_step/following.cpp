// Subspaces that follow the gradient.
#include "lowrank_core/subspace_step_following.h"

#include <cmath>
#include <limits>

#include "lowrank_core/buffer.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/orthonormalize.h"
#include "subspace_step/job.h"

namespace lowrank::subspace_step {
namespace {

// f(begin, end) of numbers in the order of memory.
template <class F>
void for_numbers(const Matrix& m, const F& f) {
  parallel_chunks(size_of(m), kChunk, f);
}

template <class T>
class Follow {
 public:
  Follow(const FollowJob& job, const FollowParams& params)
      : job_(job),
        p_(params),
        correction1_(1.0 - std::pow(params.beta1, double(job.step))),
        correction2_(1.0 - std::pow(params.beta2, double(job.step))),
        found_(job.basis.rows, job.basis.cols),
        square_(job.basis.cols, job.basis.cols),
        spare_(job.basis.rows, job.basis.cols) {}

  void run() {
    add_gradient();
    search();
    orthonormalize(found_, spare_);
    const Matrix& error = job_.w;
    multiply(job_.low, found_.view().transposed(), error, 1.0);
    multiply(error, job_.basis, job_.first, p_.beta1 / (1.0 - p_.beta1), 1.0);
    turn();
    copy(job_.basis, found_.view());
  }

 private:
  void multiply(const Matrix& c, const Matrix& a, const Matrix& b, double alpha, double beta = 0.0) const {
    gemm(c, a, b, {.alpha = alpha, .beta = beta, .math = p_.math});
  }

  void add_gradient() const {
    const bool by_columns = runs_along_columns(job_.w);
    const Matrix to = by_columns ? job_.w.transposed() : job_.w, g = by_columns ? job_.g.transposed() : job_.g;
    parallel_chunks(to.rows, std::max<int64_t>(1, kChunk / to.cols), [&](int64_t begin, int64_t end) {
      with_float_type(g.dtype, [&](auto tag) {
        using S = decltype(tag);
        for (int64_t i = begin; i < end; ++i) add_line(to, i, g.as<S>() + i * g.row_stride, g.col_stride);
      });
    });
  }
  template <class S>
  void add_line(const Matrix& to, int64_t i, const S* from, int64_t step) const {
    T* const line = to.as<T>() + i * to.row_stride;
    const int64_t cols = to.cols;
    const T sign = p_.maximize ? T(-1) : T(1);
    if (to.col_stride == 1 && step == 1) {
      for (int64_t j = 0; j < cols; ++j) line[j] += sign * T(to_float(from[j]));
    } else {
      for (int64_t j = 0; j < cols; ++j) line[j * to.col_stride] += sign * T(to_float(from[j * step]));
    }
  }

  // found <- B Bᵀ P, up to a factor: the largest entry of Bᵀ P is brought to 1, for B's squares may not be numbers. R
  // is where Bᵀ P is held meanwhile.
  void search() {
    const double mean = p_.rho / correction1_, rest = 1.0 - p_.rho;
    const Matrix seen = job_.low, square = square_.view(), found = found_.view();
    gram(square, job_.basis);  // not quite 1
    multiply(seen, square, job_.first, mean);
    multiply(seen, job_.basis.transposed(), job_.w, rest, 1.0);
    const T most = std::max(T(largest_magnitude(seen)), std::numeric_limits<T>::min());
    T* const numbers = seen.as<T>();
    for_numbers(seen, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) numbers[i] /= most;
    });
    multiply(square, job_.first, seen.transposed(), mean);
    multiply(found, job_.w, seen.transposed(), rest);
    multiply(found, job_.basis, square, 1.0, 1.0);
  }

  void turn() {
    const Matrix change = square_.view();
    multiply(change, found_.view().transposed(), job_.basis, 1.0);
    Buffer<T> means(size_of(job_.low)), variances(size_of(job_.low));
    Matrix mean = job_.first, spread = job_.first;
    mean.data = means.data();
    spread.data = variances.data();
    const T c1 = T(correction1_), c2 = T(correction2_);
    T *const first = job_.first.as<T>(), *const second = job_.second.as<T>();
    for_numbers(mean, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) variances[i] = variance(second[i], first[i], c1, c2);
    });
    multiply(mean, change, job_.first, 1.0);
    for (int64_t i = 0; i < square_.size(); ++i) square_[i] *= square_[i];
    multiply(job_.second, change, spread, 1.0);
    for_numbers(mean, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        first[i] = means[i];
        second[i] = second_of(second[i], means[i], c1, c2);
      }
    });
  }

  const FollowJob job_;
  const FollowParams p_;
  const double correction1_, correction2_;
  MatrixBuffer<T> found_, square_, spare_;
};

}  // namespace

void follow_cpu(const std::vector<FollowJob>& jobs, const FollowParams& params) {
  for_each_job(jobs, [&](const FollowJob& job) {
    if (job.w.empty() || job.low.empty()) return;
    job.w.dtype == DType::kFloat64 ? Follow<double>(job, params).run() : Follow<float>(job, params).run();
  });
}

}  // namespace lowrank::subspace_step
