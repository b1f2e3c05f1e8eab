#include "lowrank_core/newton_schulz.h"

#include <algorithm>
#include <cmath>

#include "core/gemm_level.h"
#include "core/newton_schulz_level.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/parallel.h"

namespace lowrank {
namespace {

constexpr int64_t kOneThreadEach = 1 << 18;  // elements of matrices that get one thread each, if there are several
constexpr int64_t kDividedRows = 32;         // of one task

// One matrix; T holds X, A and the polynomial of A.
template <class T>
class Iteration {
 public:
  Iteration(const NewtonSchulzJob& job, const NewtonSchulz& by)
      : job_(job),
        by_(by),
        tall_(job.to.rows > job.to.cols),
        x_(job.to.rows, job.to.cols),
        next_(job.to.rows, job.to.cols),
        gram_(std::min(job.to.rows, job.to.cols), std::min(job.to.rows, job.to.cols)),
        polynomial_(gram_.rows(), gram_.cols()) {}

  void run() {
    const double norm = std::max(std::sqrt(squared_norm(job_.from)), by_.eps);
    divide(by_.steps == 0 ? job_.to : x_.view(), norm);
    for (int step = 1; step <= by_.steps; ++step) advance(step == by_.steps);
  }

 private:
  void divide(const Matrix& to, double norm) const {
    parallel_chunks(to.rows, kDividedRows, [&](int64_t begin, int64_t end) {
      at_level<NewtonSchulzLevel>().divide(to, job_.from, norm, begin, end);
    });
  }

  void advance(bool last) {
    const auto [a, b, c] = by_.coefficients;
    const Matrix x = x_.view(), gram = gram_.view(), polynomial = polynomial_.view();
    const Matrix wide = tall_ ? x.transposed() : x;
    multiply({gram, wide, wide.transposed(), 1.0, 0.0, {}, true, gram});
    multiply({polynomial, gram, gram, c, b, {}, true, gram});  // A is its own transpose
    const Matrix out = last ? job_.to : next_.view();
    if (out.dtype != x.dtype) copy(out, x);
    const Matrix plus = out.dtype == x.dtype ? x : out;
    if (tall_) {
      multiply({out, x, polynomial, 1.0, a, {}, false, plus});
    } else {
      multiply({out, polynomial, x, 1.0, a, {}, false, plus});
    }
    std::swap(x_, next_);
  }

  void multiply(DenseProduct product) const {
    product.arithmetic =
        arithmetic_for(product.c.dtype, dtype_of<T>::value == DType::kBFloat16 ? Math::kBFloat16 : Math::kFloat32);
    at_level<GemmLevel>().multiply(product);  // as it is: written along the rows, which are never much shorter
  }

  const NewtonSchulzJob job_;
  const NewtonSchulz by_;
  const bool tall_;
  MatrixBuffer<T> x_, next_, gram_, polynomial_;
};

void run(const NewtonSchulzJob& job, const NewtonSchulz& by) {
  if (job.to.empty()) return;
  if (job.to.dtype == DType::kFloat64) return Iteration<double>(job, by).run();
  has_fast_bfloat16() ? Iteration<bfloat16>(job, by).run() : Iteration<float>(job, by).run();
}

}  // namespace

void newton_schulz(const std::vector<NewtonSchulzJob>& jobs, const NewtonSchulz& iteration) {
  std::vector<const NewtonSchulzJob*> small;
  for (const NewtonSchulzJob& job : jobs) {
    if (job.to.rows * job.to.cols <= kOneThreadEach) {
      small.push_back(&job);
    } else {
      run(job, iteration);
    }
  }
  parallel_for(int64_t(small.size()), [&](int64_t i) { run(*small[size_t(i)], iteration); });
}

}  // namespace lowrank
