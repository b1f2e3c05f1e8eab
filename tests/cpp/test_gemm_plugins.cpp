// The loop nest with a Load and an Epilogue of another family. This file stands for one in a family's folder
// levels, compiled for the generic level.
#define LRC_LEVEL generic
#include <cmath>
#include <vector>

#include "check.h"
#include "lowrank_core/simd/pack.h"
#include "lowrank_core/simd/strided_load.h"

namespace lowrank::LRC_LEVEL {
namespace {

// Codes of 8 bits with one scale for every line, as a packed basis would be: element (o, p) is code * scale[o].
struct ScaledCodes {
  static constexpr bool kBfloat16 = false;
  static constexpr bool depth_major = true;

  const int8_t* codes;  // [lines, length]
  const float* scales;
  int64_t lines, length;

  template <class A, bool kChecked>
  Vec<A> outer(int64_t o, int64_t p) const {
    Vec<A> v{};
    for (int i = 0; i < kLanes<A>; ++i) v[i] = element<A>(o + i, p);
    return v;
  }
  template <class A, bool kChecked>
  Vec<A> depth(int64_t o, int64_t p) const {
    Vec<A> v{};
    for (int i = 0; i < kLanes<A>; ++i) v[i] = element<A>(o, p + i);
    return v;
  }
  int64_t whole_outer(int64_t, int64_t, int64_t) const { return 0; }
  int64_t whole_depth(int64_t, int64_t, int64_t) const { return 0; }
  Ahead ahead(const Slab&) const { return {}; }

  template <class A>
  A element(int64_t o, int64_t p) const {
    return o < lines && p < length ? A(codes[o * length + p]) * A(scales[o]) : A(0);
  }
};

// Applies a function that is not linear, so a partial sum or a second visit would show, and counts its visits.
struct Squash {
  double* out;
  int* visits;
  int64_t columns;

  static void finish(const void* self, const void* finished) {
    const auto& squash = *static_cast<const Squash*>(self);
    const auto& tile = *static_cast<const Tile<double>*>(finished);
    for (int i = 0; i < tile.rows; ++i) {
      for (int j = 0; j < tile.cols; ++j) {
        const int64_t at = (tile.row + i) * squash.columns + tile.col + j;
        squash.out[at] = std::tanh(tile[i][j]);
        ++squash.visits[at];
      }
    }
  }
};

void test_plugins(int64_t m, int64_t n, int64_t k) {
  std::vector<int8_t> codes(size_t(m * k));
  std::vector<float> scales(static_cast<size_t>(m)), b(size_t(k * n));
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = int8_t(int(i * 7 % 15) - 7);
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = 0.125f / float(1 + i % 3);
  for (size_t i = 0; i < b.size(); ++i) b[i] = float(int(i * 5 % 11) - 5) / 64.0f;
  std::vector<double> out(size_t(m * n));
  std::vector<int> visits(out.size());

  const ScaledCodes left{codes.data(), scales.data(), m, k};
  const StridedLoad<float> right{b.data(), n, k, 1, n, false};
  const Squash squash{out.data(), visits.data(), n};
  multiply(Arithmetic::kFloat64,
           {m, n, k, operand<Plain<double>>(left), operand<Plain<double>>(right), {&squash, Squash::finish, nullptr}});

  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, size = 0;
      for (int64_t p = 0; p < k; ++p) {
        const double term = left.element<double>(i, p) * double(b[size_t(p * n + j)]);
        sum += term;
        size += std::fabs(term);
      }
      // tanh has slope at most 1; both sums keep within k u of the exact one, and tanh itself within an ulp or two.
      CHECK(std::fabs(out[size_t(i * n + j)] - std::tanh(sum)) <= 2 * double(k + 2) * 0x1p-53 * size + 0x1p-51);
      CHECK(visits[size_t(i * n + j)] == 1);
    }
  }
}

}  // namespace
}  // namespace lowrank::LRC_LEVEL

int main() {
  lowrank::generic::test_plugins(13, 17, 5);
  lowrank::generic::test_plugins(40, 33, 700);   // blocks along k
  lowrank::generic::test_plugins(20, 16, 9000);  // slices of k
  lowrank::generic::test_plugins(200, 150, 40);  // blocks of rows and columns
  return lowrank::testing::finish();
}
