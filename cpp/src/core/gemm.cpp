#include "lowrank_core/gemm.h"

#include "core/gemm_level.h"
#include "lowrank_core/parallel.h"

namespace lowrank {
namespace {

void check_dtype(const char* argument, const Matrix& m) {
  LRC_CHECK(is_float(m.dtype), std::string("gemm: `") + argument +
                                   "` must be float32, float64, bfloat16 or float16, got " + name(m.dtype));
}

std::string shape(const Matrix& m) {
  std::string text = "[";
  return text.append(std::to_string(m.rows)).append(", ").append(std::to_string(m.cols)).append("]");
}

void check(const Matrix& c, const Matrix& a, const Matrix& b) {
  check_dtype("c", c);
  check_dtype("a", a);
  check_dtype("b", b);
  LRC_CHECK(a.cols == b.rows && c.rows == a.rows && c.cols == b.cols,
            "gemm: the shapes must be [m, n] = [m, k] [k, n], got " + shape(c) + " = " + shape(a) + " " + shape(b));
}

}  // namespace

bool has_fast_bfloat16() {
#if defined(LRC_HAVE_X86_LEVELS)
  if (isa() == Isa::kAvx512Amx) return true;
  // Measured on Emerald Rapids: one vdpbf16ps in two cycles against two float32 multiply-adds in one, that is, half
  // the rate of float32. Since Sapphire Rapids Intel's fast bfloat16 is AMX; Cooper Lake and AMD's are documented at
  // twice float32.
  return isa() == Isa::kAvx512Bf16 && (!__builtin_cpu_is("intel") || __builtin_cpu_is("cooperlake"));
#else
  return false;
#endif
}

Arithmetic arithmetic_for(DType c, Math math) {
  if (c == DType::kFloat64) return Arithmetic::kFloat64;
  if (math == Math::kFloat32) return Arithmetic::kFloat32;
  if (isa() == Isa::kAvx512Amx) return Arithmetic::kTiles;
  return has_fast_bfloat16() ? Arithmetic::kPairs : Arithmetic::kRounded;
}

// The nest cuts a tile to as few as 2 rows but never below one vector of columns, so a thin side belongs on the rows.
// Otherwise it reads the left operand once and the right one once per block of rows, so the long side does; and it
// writes along the rows of C.
bool better_transposed(const Matrix& c) {
  constexpr int64_t thin = 8, much = 4;
  if (c.rows <= thin || c.cols <= thin) return c.cols < c.rows;
  if (c.cols >= much * c.rows) return true;
  if (c.rows >= much * c.cols) return false;
  return std::abs(c.row_stride) < std::abs(c.col_stride);
}

void multiply(const DenseProduct& p) {
  if (p.symmetric || !better_transposed(p.c)) return at_level<GemmLevel>().multiply(p);
  DenseProduct turned = p;
  turned.c = p.c.transposed();
  turned.a = p.b.transposed();
  turned.b = p.a.transposed();
  turned.plus = p.plus.transposed();
  at_level<GemmLevel>().multiply(turned);
}

void gemm(const Matrix& c, const Matrix& a, const Matrix& b, const GemmOptions& options) {
  check(c, a, b);
  const Arithmetic arithmetic = arithmetic_for(c.dtype, options.math);
  multiply({c, a, b, options.alpha, options.beta, arithmetic, false, c});
}

void gram(const Matrix& g, const Matrix& y, const GemmOptions& options) {
  check(g, y.transposed(), y);
  const Arithmetic arithmetic = arithmetic_for(g.dtype, options.math);
  multiply({g, y.transposed(), y, options.alpha, options.beta, arithmetic, true, g});
}

void for_each_task(int64_t count, void (*task)(const void* job, int64_t index), const void* job) {
  parallel_for(count, [&](int64_t i) { task(job, i); });
}

}  // namespace lowrank
