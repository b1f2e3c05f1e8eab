// What features do to a few rows of a problem, and what features are taken of.
#include "chain_lr/features.h"

namespace lowrank::chain_lr {
namespace {

constexpr int64_t kSampledRows = 8;  // of a head whose error is looked at

struct Squares {
  double error = 0.0, size = 0.0;
};

// weights [M] -> p = f ∘ (dP - rho), f = weights / their sum.
void row_gradient(std::vector<double>& weights, const double* dp) {
  double sum = 0.0, rho = 0.0;
  for (const double w : weights) sum += w;
  for (double& w : weights) w = sum == 0.0 ? 0.0 : w / sum;
  for (size_t l = 0; l < weights.size(); ++l) rho += weights[l] * dp[l];
  for (size_t l = 0; l < weights.size(); ++l) weights[l] *= dp[l] - rho;
}

template <class T>
Squares sampled_head(const Attention& problem, const Features& features, int64_t index) {
  Head<T> head(problem, index);
  check_head(head);
  MatrixBuffer<T> left = given<T>(*features.left, index), right = given<T>(*features.right, index);
  const int64_t count = std::min(kSampledRows, head.queries), keys = head.keys;
  MatrixBuffer<double> scores(1, keys), dp(1, keys), kernel(1, keys);
  Squares squares;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t i = head.queries * (2 * k + 1) / (2 * count);
    gemm(scores.view(), head.effective.view().block(i, 0, 1, head.depth), head.centered.view().transposed());
    gemm(dp.view(), head.dout.block(i, 0, 1, head.value_depth), head.values.transposed());
    gemm(kernel.view(), left.view().block(i, 0, 1, left.cols()), right.view().transposed());
    std::vector<double> exact(size_t(keys), 0.0), found(size_t(keys), 0.0);
    double largest = -std::numeric_limits<double>::infinity();
    const auto met = [&](int64_t l) { return head.sees(l) && (!problem.causal || l <= i); };
    for (int64_t l = 0; l < keys; ++l) largest = met(l) ? std::max(largest, scores[l]) : largest;
    for (int64_t l = 0; l < keys; ++l) {
      if (!met(l)) continue;
      exact[size_t(l)] = std::exp(scores[l] - largest);
      found[size_t(l)] = kernel[l];
    }
    row_gradient(exact, dp.data());
    row_gradient(found, dp.data());
    for (size_t l = 0; l < exact.size(); ++l) {
      squares.error += (found[l] - exact[l]) * (found[l] - exact[l]);
      squares.size += exact[l] * exact[l];
    }
  }
  return squares;
}

}  // namespace

double sampled_error_cpu(const Attention& problem, const Features& features) {
  LRC_CHECK(features.left && features.right, "attention_lora_grad: `features` must be given to be sampled");
  Squares total;
  with_work_type(problem.queries.dtype, [&](auto tag) {
    for (int64_t i = 0; i < problem.queries.batch(); ++i) {
      const Squares one = sampled_head<decltype(tag)>(problem, features, i);
      total.error += one.error;
      total.size += one.size;
    }
  });
  return total.error == 0.0 ? 0.0 : std::sqrt(total.error / total.size);
}

void attention_operands_cpu(const View& queries, const View& keys, const Attention& problem) {
  with_work_type(problem.queries.dtype, [&](auto tag) {
    for (int64_t i = 0; i < problem.queries.batch(); ++i) {
      Head<decltype(tag)> head(problem, i);
      copy(queries.matrix(i), head.effective.view());
      copy(keys.matrix(i), head.centered.view());
    }
  });
}

}  // namespace lowrank::chain_lr
