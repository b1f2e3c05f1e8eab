// Products against long double, within the a-priori bound (k + 4) u (|alpha| |A| |B| + |beta| |C|) plus the one
// rounding of C, at every instruction-set level; what else the header promises, to the bit.
#include <omp.h>

#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"
#include "core/gemm_level.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/isa.h"

namespace lowrank {
namespace {

constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};
enum class Layout { kRowMajor, kColumnMajor, kSliced, kStepped, kReversed };
constexpr Layout kLayouts[] = {Layout::kRowMajor, Layout::kColumnMajor, Layout::kSliced, Layout::kStepped,
                               Layout::kReversed};

double get(const Matrix& m, int64_t i, int64_t j) {
  const int64_t at = i * m.row_stride + j * m.col_stride;
  switch (m.dtype) {
    case DType::kFloat64:
      return m.as<double>()[at];
    case DType::kBFloat16:
      return to_float(m.as<bfloat16>()[at]);
    case DType::kFloat16:
      return to_float(m.as<float16>()[at]);
    default:
      return m.as<float>()[at];
  }
}

void set(const Matrix& m, int64_t i, int64_t j, double value) {
  const int64_t at = i * m.row_stride + j * m.col_stride;
  switch (m.dtype) {
    case DType::kFloat64:
      m.as<double>()[at] = value;
      break;
    case DType::kBFloat16:
      m.as<bfloat16>()[at] = to_bfloat16(float(value));
      break;
    case DType::kFloat16:
      m.as<float16>()[at] = to_float16(float(value));
      break;
    default:
      m.as<float>()[at] = float(value);
  }
}

// Uniform in [-1, 1), from Numerical Recipes' linear congruential generator.
double uniform(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return double(state >> 8) * 0x1p-23 - 1.0;
}

// A matrix inside a buffer of NaN that ends where the matrix ends, so that a sanitizer sees what is read beyond.
class Array {
 public:
  Array(int64_t rows, int64_t cols, DType dtype = DType::kFloat32, Layout layout = Layout::kRowMajor) {
    view_ = {nullptr, dtype, rows, cols, cols, 1};
    if (layout == Layout::kColumnMajor) view_.row_stride = 1, view_.col_stride = rows;
    if (layout == Layout::kSliced) view_.row_stride = cols + 3;
    if (layout == Layout::kStepped) view_.row_stride = 2 * cols + 1, view_.col_stride = 2;
    if (layout == Layout::kReversed) view_.row_stride = -cols - 1, view_.col_stride = -1;
    const int64_t far = view_.empty() ? 0 : (rows - 1) * view_.row_stride + (cols - 1) * view_.col_stride;
    const int64_t size = std::abs(far) + 1, item = item_size(dtype);
    bytes_.assign(size_t(size * item), 0xFF);  // all ones is a NaN in every float type
    view_.data = bytes_.data() + (far < 0 ? (size - 1) * item : 0);
  }

  static Array random(int64_t rows, int64_t cols, DType dtype, Layout layout, uint32_t seed) {
    Array array(rows, cols, dtype, layout);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) set(array.view_, i, j, uniform(seed));
    }
    return array;
  }

  Array(const Array&) = delete;
  Array(Array&&) = default;

  const Matrix& view() const { return view_; }
  const std::vector<unsigned char>& bytes() const { return bytes_; }

  // Whether everything outside the matrix is still as it was made.
  bool surroundings_intact() const {
    std::vector<unsigned char> copy = bytes_;
    const int64_t item = item_size(view_.dtype);
    const int64_t corner = static_cast<const unsigned char*>(view_.data) - bytes_.data();
    for (int64_t i = 0; i < view_.rows; ++i) {
      for (int64_t j = 0; j < view_.cols; ++j) {
        memset(copy.data() + corner + (i * view_.row_stride + j * view_.col_stride) * item, 0xFF, size_t(item));
      }
    }
    for (const unsigned char byte : copy) {
      if (byte != 0xFF) return false;
    }
    return true;
  }

 private:
  std::vector<unsigned char> bytes_;
  Matrix view_;
};

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-53;
    case DType::kBFloat16:
      return 0x1p-8;  // 8 bits of significand
    case DType::kFloat16:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

// Below it the results of a type are spaced evenly.
double smallest_step(DType dtype) { return dtype == DType::kFloat16 ? 0x1p-24 : 0x1p-126; }

double operand(const Matrix& m, int64_t i, int64_t j, bool rounded) {
  const double x = get(m, i, j);
  return rounded ? to_float(to_bfloat16(float(x))) : x;
}

// Whether c is alpha a b + beta before, where `before` holds what C was (null: beta is 0).
bool is_product(const Matrix& c, const Matrix& a, const Matrix& b, const GemmOptions& options, const Matrix* before) {
  const bool rounded = options.math == Math::kBFloat16 && c.dtype != DType::kFloat64;
  const double u = c.dtype == DType::kFloat64 ? 0x1p-53 : 0x1p-24;
  const double bound = double(a.cols + 4) * u;
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < c.cols; ++j) {
      long double sum = 0, size = 0;
      for (int64_t p = 0; p < a.cols; ++p) {
        const long double term = static_cast<long double>(operand(a, i, p, rounded)) * operand(b, p, j, rounded);
        sum += term;
        size += std::fabs(term);
      }
      const long double old = before ? options.beta * static_cast<long double>(get(*before, i, j)) : 0;
      const long double exact = options.alpha * sum + old;
      const long double computed = bound * (std::fabs(options.alpha) * size + std::fabs(old));
      const long double stored = unit_roundoff(c.dtype) * (std::fabs(exact) + computed) + smallest_step(c.dtype);
      if (!(std::fabs(get(c, i, j) - exact) <= computed + stored)) return false;
    }
  }
  return true;
}

struct Case {
  int64_t m, n, k;
  DType c = DType::kFloat32, a = DType::kFloat32, b = DType::kFloat32;
  Layout c_layout = Layout::kRowMajor, a_layout = Layout::kRowMajor, b_layout = Layout::kRowMajor;
  GemmOptions options = {};
};

bool passes(const Case& t) {
  const Array a = Array::random(t.m, t.k, t.a, t.a_layout, 1), b = Array::random(t.k, t.n, t.b, t.b_layout, 2);
  const Array c = t.options.beta == 0 ? Array(t.m, t.n, t.c, t.c_layout) : Array::random(t.m, t.n, t.c, t.c_layout, 3);
  const Array before = Array::random(t.m, t.n, t.c, t.c_layout, 3);
  gemm(c.view(), a.view(), b.view(), t.options);
  return c.surroundings_intact() &&
         is_product(c.view(), a.view(), b.view(), t.options, t.options.beta == 0 ? nullptr : &before.view());
}

// ---- shapes, layouts, types --------------------------------------------------------------------------------------

// 0, 1, and one below, at and above the lanes (2 .. 16) and the tiles (6 and 14 rows, 8 .. 32 columns) of every level.
void test_small_shapes() {
  int count = 0;
  for (const int64_t m : {0, 1, 2, 3, 5, 6, 7, 8, 9, 13, 14, 15, 29}) {
    for (const int64_t n : {0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65}) {
      for (const int64_t k : {0, 1, 2, 3, 8, 15, 16, 17, 33, 37}) {
        Case t{m, n, k};
        t.a_layout = kLayouts[count % 5];
        t.b_layout = kLayouts[count / 5 % 5];
        t.c_layout = kLayouts[count / 25 % 5];
        t.options.math = count % 2 ? Math::kBFloat16 : Math::kFloat32;
        if (count % 3 == 0) t.c = DType::kFloat64;
        CHECK(passes(t));
        ++count;
      }
    }
  }
}

void test_layouts() {
  for (const Layout a : kLayouts) {
    for (const Layout b : kLayouts) {
      for (const Layout c : kLayouts) {
        for (const Math math : {Math::kFloat32, Math::kBFloat16}) {
          CHECK(passes({31, 37, 41, DType::kFloat32, DType::kFloat32, DType::kFloat32, c, a, b, {1.0, 0.0, math}}));
        }
      }
    }
  }
}

void test_types() {
  for (const DType c : kTypes) {
    for (const DType a : kTypes) {
      for (const DType b : kTypes) {
        for (const Layout layout : {Layout::kRowMajor, Layout::kColumnMajor}) {
          CHECK(passes({15, 33, 18, c, a, b, Layout::kRowMajor, layout, layout, {1.0, 0.0, Math::kFloat32}}));
          CHECK(passes({15, 33, 19, c, a, b, Layout::kStepped, layout, layout, {-0.75, 0.5, Math::kBFloat16}}));
        }
      }
    }
  }
}

// Blocks along k, blocks of rows and columns, slices of k, outputs that are computed transposed.
void test_blocking() {
  for (const int64_t k : {255, 256, 257, 511, 512, 513, 1025}) {
    for (const DType c : {DType::kFloat32, DType::kFloat64}) {
      CHECK(passes({29, 37, k, c}));
      CHECK(passes({29, 37, k, c, DType::kFloat32, DType::kFloat32, Layout::kRowMajor, Layout::kColumnMajor}));
      CHECK(passes({29,
                    37,
                    k,
                    c,
                    DType::kBFloat16,
                    DType::kFloat32,
                    Layout::kColumnMajor,
                    Layout::kRowMajor,
                    Layout::kColumnMajor,
                    {1.0, 0.0, Math::kBFloat16}}));
    }
  }
  for (const Layout layout : {Layout::kRowMajor, Layout::kColumnMajor}) {
    for (const DType c : {DType::kFloat32, DType::kFloat64}) {
      CHECK(passes({701, 71, 259, c, DType::kFloat32, DType::kFloat32, Layout::kRowMajor, layout, layout}));
      CHECK(passes({71, 701, 259, c, DType::kFloat32, DType::kFloat32, Layout::kRowMajor, layout, layout}));
      CHECK(
          passes({67, 45, 5003, c, DType::kFloat32, DType::kFloat32, Layout::kRowMajor, layout, layout, {2.0, -1.0}}));
      CHECK(passes({557, 569, 17, c, DType::kFloat32, DType::kFloat32, layout, layout, layout}));
    }
  }
}

void test_scaling() {
  for (const double alpha : {0.0, 1.0, -1.0, 0.3}) {
    for (const double beta : {0.0, 1.0, -0.7}) {
      for (const DType c : kTypes) {
        CHECK(passes({17,
                      35,
                      21,
                      c,
                      DType::kFloat32,
                      DType::kFloat32,
                      Layout::kRowMajor,
                      Layout::kRowMajor,
                      Layout::kRowMajor,
                      {alpha, beta}}));
        CHECK(passes({17,
                      35,
                      0,
                      c,
                      DType::kFloat32,
                      DType::kFloat32,
                      Layout::kColumnMajor,
                      Layout::kRowMajor,
                      Layout::kRowMajor,
                      {alpha, beta}}));
      }
    }
  }
}

// An expanded tensor has strides of 0.
void test_zero_strides() {
  Array row = Array::random(1, 37, DType::kFloat32, Layout::kRowMajor, 5);
  const Array b = Array::random(37, 9, DType::kFloat32, Layout::kRowMajor, 6), c(21, 9);
  const Matrix a = {row.view().data, DType::kFloat32, 21, 37, 0, 1};
  gemm(c.view(), a, b.view());
  CHECK(is_product(c.view(), a, b.view(), {}, nullptr));
}

// ---- special values ----------------------------------------------------------------------------------------------

// 1 * x is x for every x that the 16-bit types have, at every level, by both directions of reading.
void test_all_half_values() {
  constexpr int64_t count = 65536;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    Array all(count, 1, dtype), one(1, 1), wide(count, 1), narrow(1, count, dtype);
    for (int64_t i = 0; i < count; ++i) all.view().as<uint16_t>()[i] = uint16_t(i);
    set(one.view(), 0, 0, 1.0);
    gemm(wide.view(), all.view(), one.view());
    gemm(narrow.view(), one.view(), all.view().transposed());
    bool equal = true;
    for (int64_t i = 0; i < count; ++i) {
      const double x = get(all.view(), i, 0), y = get(wide.view(), i, 0), z = get(narrow.view(), 0, i);
      equal = equal && (std::isnan(x) ? std::isnan(y) && std::isnan(z) : x == y && x == z);
    }
    CHECK(equal);
  }
}

// An infinity and a NaN reach their row and their column and nothing else.
void test_non_finite() {
  for (const Math math : {Math::kFloat32, Math::kBFloat16}) {
    const Array a = Array::random(30, 20, DType::kFloat32, Layout::kRowMajor, 7);
    const Array b = Array::random(20, 40, DType::kFloat32, Layout::kRowMajor, 8), c(30, 40);
    set(a.view(), 13, 19, std::numeric_limits<double>::infinity());
    b.view().as<uint32_t>()[19 * 40 + 32] = 0x7FFFFFFFu;  // a NaN that careless rounding turns into -0
    gemm(c.view(), a.view(), b.view(), {1.0, 0.0, math});
    bool right = true;
    for (int64_t i = 0; i < 30; ++i) {
      for (int64_t j = 0; j < 40; ++j) {
        const double x = get(c.view(), i, j);
        right = right && (j == 32 ? std::isnan(x) : i == 13 ? std::isinf(x) : std::isfinite(x));
      }
    }
    CHECK(right);
  }
}

// ---- determinism, symmetry, the levels' own paths ----------------------------------------------------------------

void test_threads() {
  const int before = omp_get_max_threads();
  const Case cases[] = {{701, 71, 600}, {67, 45, 5003}, {40, 900, 300}, {138, 138, 138}};
  constexpr std::pair<DType, Math> kinds[] = {
      {DType::kFloat32, Math::kFloat32}, {DType::kFloat64, Math::kFloat32}, {DType::kFloat32, Math::kBFloat16}};
  for (const Case& t : cases) {
    for (const auto& [dtype, math] : kinds) {
      const Array a = Array::random(t.m, t.k, DType::kFloat32, Layout::kColumnMajor, 1);
      const Array b = Array::random(t.k, t.n, DType::kFloat32, Layout::kRowMajor, 2);
      const Array one(t.m, t.n, dtype), two(t.m, t.n, dtype), three(t.m, t.n, dtype);
      omp_set_num_threads(1);
      gemm(one.view(), a.view(), b.view(), {1.0, 0.0, math});
      omp_set_num_threads(2);
      gemm(two.view(), a.view(), b.view(), {1.0, 0.0, math});
      omp_set_num_threads(3);
      gemm(three.view(), a.view(), b.view(), {1.0, 0.0, math});
      CHECK(one.bytes() == two.bytes() && one.bytes() == three.bytes());
    }
  }
  omp_set_num_threads(before);
}

void test_gram() {
  for (const Layout layout : kLayouts) {
    for (const int64_t n : {0, 1, 7, 14, 33, 71}) {
      for (const int64_t m : {0, 1, 29, 1500}) {
        for (const DType dtype : kTypes) {
          for (const double beta : {0.0, 1.0}) {
            const Array y = Array::random(m, n, DType::kFloat32, layout, 9), g(n, n, dtype), before(n, n, dtype);
            for (int64_t i = 0; i < n * n; ++i) {
              set(before.view(), i / n, i % n, double((i / n + i % n) % 5));
              if (beta != 0) set(g.view(), i / n, i % n, double((i / n + i % n) % 5));
            }
            const GemmOptions options{0.5, beta};
            gram(g.view(), y.view(), options);
            CHECK(is_product(g.view(), y.view().transposed(), y.view(), options, beta == 0 ? nullptr : &before.view()));
            bool symmetric = true;
            for (int64_t i = 0; i < n; ++i) {
              for (int64_t j = 0; j < i; ++j) symmetric = symmetric && get(g.view(), i, j) == get(g.view(), j, i);
            }
            CHECK(symmetric);
          }
        }
      }
    }
  }
}

// ---- bfloat16 pairs: the dot product, which gemm() uses only where it is the faster way, and tiles -----------------

#if defined(LRC_HAVE_X86_LEVELS)
// C <- alpha A B in an arithmetic of this CPU.
void multiply_in(Arithmetic arithmetic, const Array& c, const Matrix& a, const Matrix& b, double alpha,
                 bool symmetric) {
  GemmLevel::avx512bf16.multiply({c.view(), a, b, alpha, 0.0, arithmetic, symmetric, c.view()});
}

// Edges of tiles of 16 and 32, blocks of 512 along k, and what is packed across k in groups.
void test_pairs_shapes(Arithmetic arithmetic) {
  const GemmOptions options{1.5, 0.0, Math::kBFloat16};
  int count = 0;
  for (const int64_t m : {1, 15, 16, 17, 31, 32, 33, 129, 301}) {
    for (const int64_t n : {1, 16, 17, 33, 50}) {
      for (const int64_t k : {0, 1, 2, 31, 32, 33, 64, 511, 513, 1025}) {
        const Array a = Array::random(m, k, kTypes[count % 4], kLayouts[count % 5], 1);
        const Array b = Array::random(k, n, kTypes[count / 4 % 4], kLayouts[count / 5 % 5], 2), c(m, n);
        multiply_in(arithmetic, c, a.view(), b.view(), options.alpha, false);
        CHECK(c.surroundings_intact() && is_product(c.view(), a.view(), b.view(), options, nullptr));
        ++count;
      }
    }
  }
}

void test_pairs_layouts(Arithmetic arithmetic) {
  const GemmOptions options{1.5, 0.0, Math::kBFloat16};
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const Layout layout : kLayouts) {
      for (const int64_t k : {0, 1, 2, 31, 32, 33, 511, 512, 513, 2049}) {
        const Array a = Array::random(31, k, dtype, layout, 1), b = Array::random(k, 50, dtype, layout, 2), c(31, 50);
        multiply_in(arithmetic, c, a.view(), b.view(), options.alpha, false);
        CHECK(is_product(c.view(), a.view(), b.view(), options, nullptr));
        const Array g(50, 50);
        multiply_in(arithmetic, g, b.view().transposed(), b.view(), options.alpha, true);
        CHECK(is_product(g.view(), b.view().transposed(), b.view(), options, nullptr));
      }
    }
  }
}

// One way of reading an operand after the other: x stands on the diagonal of a matrix that is multiplied with the unit
// matrix. Ties go to even, infinity and NaN stay, denormals count as zero.
void test_pairs_rounding(Arithmetic arithmetic) {
  constexpr int64_t n = 64;
  constexpr uint32_t values[] = {0x3F808000u, 0x3F818000u, 0x3F808001u, 0xBF807FFFu, 0x7F7FFFFFu, 0x00800000u,
                                 0x007FFFFFu, 0x80000001u, 0x00400000u, 0x7F800000u, 0xFF800000u, 0x7FC00001u,
                                 0x7F800001u, 0xFFFFFFFFu, 0x00000000u, 0x42280000u};
  const auto value = [&](int64_t i) { return bits_float(values[size_t(i) % std::size(values)]); };
  const auto is_rounded = [](float computed, float x, DType stored) {
    if (stored == DType::kBFloat16) x = to_float(to_bfloat16(x));
    const float expected = std::fabs(x) < 0x1p-126f ? 0.0f : to_float(to_bfloat16(x));
    return std::isnan(expected) ? std::isnan(computed) : computed == expected;
  };
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const Layout layout : kLayouts) {
      const Array x(n, n, dtype, layout), unit(n, n, dtype, layout), right(n, n), left(n, n);
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          set(x.view(), i, j, i == j ? value(i) : 0.0);
          set(unit.view(), i, j, i == j ? 1.0 : 0.0);
        }
      }
      multiply_in(arithmetic, right, x.view(), unit.view(), 1.0, false);
      multiply_in(arithmetic, left, unit.view(), x.view(), 1.0, false);
      for (int64_t i = 0; i < n; ++i) {
        CHECK(is_rounded(float(get(right.view(), i, i)), value(i), dtype));
        CHECK(is_rounded(float(get(left.view(), i, i)), value(i), dtype));
      }
    }
  }
}

// Panels of an earlier product hold NaN where this one's tiles have zeros to multiply.
void test_pairs_after_nan(Arithmetic arithmetic) {
  const Array spoilt(64, 512), spoilt_right(512, 64), nowhere(64, 64);
  for (int64_t i = 0; i < 64 * 512; ++i) {
    spoilt.view().as<float>()[i] = std::numeric_limits<float>::quiet_NaN();
    spoilt_right.view().as<float>()[i] = std::numeric_limits<float>::quiet_NaN();
  }
  for (const Layout layout : {Layout::kRowMajor, Layout::kColumnMajor}) {
    for (const int64_t k : {1, 5, 33, 500}) {
      multiply_in(arithmetic, nowhere, spoilt.view(), spoilt_right.view(), 1.0, false);
      const Array a = Array::random(18, k, DType::kFloat32, layout, 1), c(18, 20);
      const Array b = Array::random(k, 20, DType::kFloat32, layout, 2);
      multiply_in(arithmetic, c, a.view(), b.view(), 1.0, false);
      CHECK(is_product(c.view(), a.view(), b.view(), {1.0, 0.0, Math::kBFloat16}, nullptr));
    }
  }
}

void test_pairs(Arithmetic arithmetic) {
  test_pairs_shapes(arithmetic);
  test_pairs_layouts(arithmetic);
  test_pairs_rounding(arithmetic);
  test_pairs_after_nan(arithmetic);
}

void test_pairs() {
  if (detected_isa() >= Isa::kAvx512Bf16) test_pairs(Arithmetic::kPairs);
  if (detected_isa() < Isa::kAvx512Amx) return;
  test_pairs(Arithmetic::kTiles);
  const LevelScope tiles(Isa::kAvx512Amx);
  CHECK(has_fast_bfloat16() && arithmetic_for(DType::kFloat32, Math::kBFloat16) == Arithmetic::kTiles);
  CHECK(arithmetic_for(DType::kFloat32, Math::kFloat32) == Arithmetic::kFloat32);
  CHECK(arithmetic_for(DType::kFloat64, Math::kBFloat16) == Arithmetic::kFloat64);
  const LevelScope pairs(Isa::kAvx512Bf16);
  CHECK(arithmetic_for(DType::kFloat32, Math::kBFloat16) != Arithmetic::kTiles);
}
#else
void test_pairs() {}
#endif

template <class Call>
bool refuses(const Call& call, const char* part) {
  try {
    call();
  } catch (const Error& error) {
    return std::string(error.what()).find(part) != std::string::npos;
  }
  return false;
}

void test_refusals() {
  const Array a(3, 4), b(5, 6), c(3, 6), codes(3, 4, DType::kInt8);
  CHECK(refuses([&] { gemm(c.view(), a.view(), b.view()); }, "got [3, 6] = [3, 4] [5, 6]"));
  CHECK(refuses([&] { gemm(c.view(), codes.view(), b.view()); }, "`a` must be float32, float64, bfloat16 or float16"));
}

}  // namespace
}  // namespace lowrank

int main() {
  using namespace lowrank;
  for (const std::string& level : isa_levels()) {
    set_isa(level);
    test_small_shapes();
    test_layouts();
    test_types();
    test_blocking();
    test_scaling();
    test_zero_strides();
    test_all_half_values();
    test_non_finite();
    test_threads();
    test_gram();
  }
  test_pairs();
  test_refusals();
  return testing::finish();
}
