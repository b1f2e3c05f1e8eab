// The kernels of int4_project at every level against the scalar statements of their header, element by element; memory
// is exactly as large as it has to be, so that a sanitizer sees what is read or written beside it.
#include "lowrank_core/int4_project.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "lowrank_core/isa.h"

namespace lowrank::int4_project {
namespace {

constexpr Scheme kSchemes[] = {Scheme::kAffine, Scheme::kAffineZp, Scheme::kSymmetric, Scheme::kNf4};

template <class T>
View matrix(std::vector<T>& data, int64_t rows, int64_t cols, DType dtype) {
  View view{.data = data.data(), .dtype = dtype, .rank = 2};
  view.shape = {rows, cols};
  view.stride = {cols, 1};
  return view;
}

// A matrix, its codes and its decoded values, each in memory of its own.
struct Case {
  int64_t rows, cols;
  Format format;
  std::vector<float> x, scales, offsets, decoded;
  std::vector<uint8_t> packed;

  Case(int64_t m, int64_t n, const Format& f) : rows(m), cols(n), format(f), x(size_t(m * n)), decoded(size_t(m * n)) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = philox::uniform(philox::bits(3, {i, 0, 0})) * 4 - 1;
    const int64_t groups = f.groups(f.dim == 0 ? m : n) * (f.dim == 0 ? n : m);
    scales.resize(size_t(groups));
    offsets.resize(size_t(groups));
    packed.assign(size_t(groups * f.group / 2), 0xFF);
  }

  View like(std::vector<float>& data) { return matrix(data, rows, cols, DType::kFloat32); }
  View along(std::vector<float>& data) { return sized(data, DType::kFloat32, 1); }

  template <class T>
  View sized(std::vector<T>& data, DType dtype, int64_t per_group) {
    const int64_t count = format.groups(format.dim == 0 ? rows : cols) * per_group;
    return format.dim == 0 ? matrix(data, count, cols, dtype) : matrix(data, rows, count, dtype);
  }

  Codes codes() {
    const bool has_offsets = format.scheme == Scheme::kAffine || format.scheme == Scheme::kAffineZp;
    return {sized(packed, DType::kUInt8, format.group / 2), along(scales),
            has_offsets ? std::optional<View>(along(offsets)) : std::nullopt};
  }

  // Element number i of line number l.
  size_t at(int64_t l, int64_t i) const { return size_t(format.dim == 0 ? i * cols + l : l * cols + i); }
  size_t byte(int64_t l, int64_t i) const {
    const int64_t bytes = format.groups(length()) * format.group / 2;
    return size_t(format.dim == 0 ? i / 2 * cols + l : l * bytes + i / 2);
  }
  size_t group(int64_t l, int64_t g) const {
    return size_t(format.dim == 0 ? g * cols + l : l * format.groups(length()) + g);
  }
  int64_t length() const { return format.dim == 0 ? rows : cols; }
  int64_t lines() const { return format.dim == 0 ? cols : rows; }
};

int code_by_statement(const Case& c, float x, const Placement& place, std::optional<uint64_t> seed, uint64_t element) {
  const bool nf4 = c.format.scheme == Scheme::kNf4;
  if (!seed) return nf4 ? nearest_nf4_code(place(x)) : nearest_even_code(place(x), place.shift);
  const float uniform = philox::uniform(philox::bits(*seed, {element, kStream, 0}));
  return nf4 ? stochastic_nf4_code(place(x), uniform) : stochastic_even_code(place(x), place.shift, uniform);
}

void check_group(const Case& c, int64_t l, int64_t g, std::optional<uint64_t> seed) {
  const int64_t begin = g * c.format.group, end = std::min(begin + c.format.group, c.length());
  Extremes range{INFINITY, -INFINITY};
  for (int64_t i = begin; i < end; ++i) {
    range = {std::min(range.low, c.x[c.at(l, i)]), std::max(range.high, c.x[c.at(l, i)])};
  }
  const Stored stored = fit(c.format.scheme, range, seed.has_value());
  const float scale = to_float(stored.scale), offset = to_float(stored.offset);
  CHECK(c.scales[c.group(l, g)] == scale);
  const Placement place = placement(c.format.scheme, scale, offset);
  const Grid read = grid(c.format.scheme, scale, offset);
  for (int64_t i = begin; i < end; ++i) {
    const int code = code_of(c.packed[c.byte(l, i)], i);
    CHECK(code == code_by_statement(c, c.x[c.at(l, i)], place, seed, c.at(l, i)));
    const float value = decode(read, c.format.scheme == Scheme::kNf4 ? nf4_level(code) : float(code));
    CHECK(c.decoded[c.at(l, i)] == value);
  }
  for (int64_t i = end; i < begin + c.format.group; ++i) CHECK(code_of(c.packed[c.byte(l, i)], i) == 0);
}

void check_codes(Case& c, std::optional<uint64_t> seed) {
  const Codes codes = c.codes();
  quantize_cpu(codes, c.like(c.x), c.format, seed);
  dequantize_cpu(c.like(c.decoded), codes, c.format);
  for (int64_t l = 0; l < c.lines(); ++l) {
    for (int64_t g = 0; g < c.format.groups(c.length()); ++g) check_group(c, l, g, seed);
  }
}

// Sums of k products are within k + 2 units of the exact one, relative to the sum of magnitudes.
void check_product(Case& c, bool back) {
  const int64_t n = 19, k = back ? c.cols : c.rows, m = back ? c.rows : c.cols;
  std::vector<float> dense(size_t(k * n)), out(size_t(m * n), NAN);
  for (size_t i = 0; i < dense.size(); ++i) dense[i] = philox::uniform(philox::bits(4, {i, 0, 0})) - 0.5f;
  const View result = matrix(out, m, n, DType::kFloat32);
  project_cpu(result, {c.codes(), c.rows, c.cols}, matrix(dense, k, n, DType::kFloat32), c.format, back);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, size = 0;
      for (int64_t p = 0; p < k; ++p) {
        const double term =
            double(c.decoded[size_t(back ? i * c.cols + p : p * c.cols + i)]) * double(dense[size_t(p * n + j)]);
        sum += term;
        size += std::abs(term);
      }
      CHECK(std::abs(double(out[size_t(i * n + j)]) - sum) <= double(k + 2) * 0x1p-24 * size);
    }
  }
}

void every_level(int64_t rows, int64_t cols, int64_t group) {
  for (const std::string& level : isa_levels()) {
    set_isa(level);
    for (const Scheme scheme : kSchemes) {
      for (const int dim : {0, 1}) {
        Case c(rows, cols, {dim, group, scheme});
        check_codes(c, 17);
        check_codes(c, std::nullopt);
        check_product(c, false);
        check_product(c, true);
      }
    }
  }
}

}  // namespace
}  // namespace lowrank::int4_project

int main() {
  for (const int64_t group : {32, 96}) {
    for (const int64_t rows : {1, 33, 129}) {
      for (const int64_t cols : {1, 17}) lowrank::int4_project::every_level(rows, cols, group);
    }
  }
  lowrank::int4_project::every_level(600, 33, 256);  // slices of k
  return lowrank::testing::finish();
}
