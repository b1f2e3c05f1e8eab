// What every kernel stands on: random bits, views, fixed-order sums.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/dense.h"
#include "lowrank_core/half.h"
#include "lowrank_core/philox.h"
#include "lowrank_core/reduce.h"
#include "lowrank_core/rsvd.h"
#include "lowrank_core/view.h"

namespace lowrank {
namespace {

template <class F>
std::string refusal(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// ---- Philox ------------------------------------------------------------------------------------------------------

bool equal(const philox::Block& x, const philox::Block& y) { return std::memcmp(x.v, y.v, sizeof x.v) == 0; }

void philox_gives_the_published_vectors() {
  // Random123's known answers for philox4x32 with 10 rounds.
  const uint32_t ones = 0xFFFFFFFFu;
  CHECK(equal(philox::rounds10({{0, 0, 0, 0}}, 0, 0), {{0x6627E8D5u, 0xE169C58Du, 0xBC57AC4Cu, 0x9B00DBD8u}}));
  CHECK(equal(philox::rounds10({{ones, ones, ones, ones}}, ones, ones),
              {{0x408F276Du, 0x41C83B0Eu, 0xA20BC7C6u, 0x6D5451FDu}}));
  CHECK(equal(philox::rounds10({{0x243F6A88u, 0x85A308D3u, 0x13198A2Eu, 0x03707344u}}, 0xA4093822u, 0x299F31D0u),
              {{0xD16CFE09u, 0x94FDCCEBu, 0x5001E420u, 0x24126EA1u}}));
}

void philox_is_addressed_by_position() {
  const uint64_t seed = 0x299F31D0A4093822u, index = 0x85A308D3243F6A88u;
  CHECK(equal(philox::block(seed, index, 0x13198A2Eu, 0x03707344u),
              {{0xD16CFE09u, 0x94FDCCEBu, 0x5001E420u, 0x24126EA1u}}));
  for (uint64_t element = 0; element < 9; ++element) {
    const philox::Block block = philox::block(seed, element / 4, 7, 3);
    CHECK(philox::bits(seed, {element, 7, 3}) == block.v[element % 4]);
  }
  std::set<uint32_t> distinct;  // every coordinate of a position counts
  for (const philox::Position& at : {philox::Position{0, 0, 0}, {1, 0, 0}, {4, 0, 0}, {0, 1, 0}, {0, 0, 1}})
    distinct.insert(philox::bits(seed, at));
  distinct.insert(philox::bits(seed + 1, {0, 0, 0}));
  distinct.insert(philox::bits(seed + (uint64_t(1) << 32), {0, 0, 0}));
  CHECK(distinct.size() == 7);
}

void uniform_is_exact() {
  CHECK(philox::uniform(0) == 0.0f);
  CHECK(philox::uniform(255) == 0.0f);
  CHECK(philox::uniform(256) == 0x1p-24f);
  CHECK(philox::uniform(0xFFFFFFFFu) == 1.0f - 0x1p-24f);
}

void a_sketch_is_what_its_entries_say() {
  for (const int64_t cols : {1, 5, 8, 9, 30}) {
    const int64_t rows = 300;
    std::vector<float> drawn(size_t(rows * cols), std::numeric_limits<float>::quiet_NaN());
    View out{.data = drawn.data(), .rank = 2};
    out.shape = {rows, cols};
    out.stride = {cols, 1};
    rsvd::sketch_cpu(out, 11, 2);
    std::vector<float> expected(drawn.size(), 0.0f);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t t = 0; t < rsvd::sketch_nonzeros(cols); ++t) {
        const rsvd::SketchEntry entry = rsvd::sketch_entry(11, 2, cols, i, t);
        CHECK(entry.col >= 0 && entry.col < cols && entry.value >= -1.0f && entry.value < 1.0f);
        expected[size_t(i * cols + entry.col)] = entry.value;
      }
    }
    CHECK(std::memcmp(drawn.data(), expected.data(), drawn.size() * sizeof(float)) == 0);
  }
}

// ---- views -------------------------------------------------------------------------------------------------------

void views() {
  std::vector<double> data(2 * 3 * 4 * 5);
  View view{.data = data.data(), .dtype = DType::kFloat64, .rank = 4};
  view.shape = {2, 3, 4, 5};
  view.stride = {60, 20, 5, 1};
  CHECK(view.size() == 120 && view.contiguous() && view.batch() == 6);
  const Matrix m = view.matrix(4);  // [1, 1]
  CHECK(m.data == data.data() + 80 && m.rows == 4 && m.cols == 5 && m.row_stride == 5 && m.col_stride == 1);
  const Matrix t = m.transposed();
  CHECK(t.rows == 5 && t.cols == 4 && t.row_stride == 1 && t.col_stride == 5 && t.data == m.data);
  const Matrix b = t.block(1, 2, 3, 2);
  CHECK(b.data == data.data() + 80 + 1 + 10 && b.rows == 3 && b.cols == 2);
  view.stride = {20, 40, 5, 1};  // the leading dimensions swapped in memory
  CHECK(!view.contiguous() && view.matrix(1).data == data.data() + 40 && view.matrix(3).data == data.data() + 20);
  view.shape[0] = 0;
  CHECK(view.size() == 0 && view.batch() == 0 && view.contiguous());
  CHECK(refusal([&] { view.matrix(); }) == "view: matrix 0 must be one of a batch of 0");
  view.shape[0] = 2;
  CHECK(refusal([&] { view.matrix(6); }) == "view: matrix 6 must be one of a batch of 6");
  CHECK(!refusal([&] { view.matrix(-1); }).empty());
  View unit{.data = data.data(), .rank = 2};
  unit.shape = {1, 3};
  unit.stride = {-77, 1};
  CHECK(unit.contiguous());
  unit.stride = {3, 2};
  CHECK(!unit.contiguous());
  unit.rank = 1;
  CHECK(refusal([&] { unit.matrix(); }) == "view: a matrix needs at least 2 dimensions, got 1");
  CHECK(item_size(DType::kFloat64) == 8 && item_size(DType::kBFloat16) == 2 && item_size(DType::kUInt8) == 1);
}

void buffers() {
  for (const int64_t size : {0, 1, 63, 1000}) {
    Buffer<float> buffer(size);
    CHECK(buffer.size() == size && reinterpret_cast<uintptr_t>(buffer.data()) % 64 == 0);
  }
  MatrixBuffer<double> m(3, 4);
  m.at(1, 2) = 7.0;
  CHECK(m.row(1)[2] == 7.0 && m.view().row_stride == 4 && m.view().dtype == DType::kFloat64);
  m.reshape(2, 6);
  CHECK(m.rows() == 2 && m.cols() == 6);
  CHECK(refusal([&] { m.reshape(4, 4); }) == "buffer: the new shape must fit the memory");
}

// ---- sums and threads --------------------------------------------------------------------------------------------

void sums() {
  for (const int64_t count : {0, 1, 2, 3, 31, 32, 33, 1000}) {
    std::vector<double> x;
    for (int64_t i = 0; i < count; ++i) x.push_back(double(i + 1));
    CHECK(tree_sum(x.data(), count) == double(count * (count + 1) / 2));
  }
  // A balanced tree errs by its depth, where a running sum would lose every one of these terms.
  const int64_t count = (int64_t(1) << 20) + 1;
  std::vector<double> tiny(size_t(count), 0x1p-60);
  tiny[0] = 1.0;
  CHECK(std::abs(tree_sum(tiny.data(), count) - (1.0 + 0x1p-40)) <= 21 * 0x1p-53);
  std::vector<double> results;
  for (const int threads : {1, 2, 3, 7}) {
    omp_set_num_threads(threads);
    results.push_back(
        ordered_sum(1001, [](int64_t i) { return std::sin(double(i)) * std::pow(10.0, double(i % 30)); }));
  }
  for (const double result : results) CHECK(result == results[0]);
}

// ---- magnitudes --------------------------------------------------------------------------------------------------

// Wherever it stands: numbers after it must not push it out.
// Of every dtype, at every level, wherever it stands in a line.
template <class T>
void the_largest_magnitude_of() {
  for (const std::string& level : isa_levels()) {
    set_isa(level);
    for (const int64_t n : {1, 7, 33, 100}) {
      bool found = true;
      for (int64_t at = 0; at < n; ++at) {
        MatrixBuffer<T> a(3, n);
        for (int64_t i = 0; i < 3 * n; ++i) a[i] = Store<T>::from(i % 2 == 0 ? -0.5f : 0.25f);
        a.at(1, at) = Store<T>::from(at % 2 == 0 ? -3.0f : 3.0f);
        const Matrix reversed{a.row(2) + n - 1, a.view().dtype, 3, n, -n, -1};
        found &= largest_magnitude(a.view()) == 3.0 && largest_magnitude(reversed) == 3.0;
        found &= column_magnitudes(a.view())[size_t(at)] == 3.0 && column_magnitudes(a.view().transposed())[1] == 3.0;
        a.at(1, at) = Store<T>::from(-HUGE_VALF);
        found &= largest_magnitude(a.view()) == HUGE_VAL;
        a.at(2, n - 1 - at) = Store<T>::from(-NAN);
        found &= std::isnan(largest_magnitude(a.view())) && std::isnan(largest_magnitude(reversed));
      }
      CHECK(found);
    }
  }
}

void the_largest_magnitude_keeps_a_nan() {
  for (const int64_t at : {0, 5, 11, 40000}) {
    MatrixBuffer<float> a(4, 20000);
    for (int64_t i = 0; i < a.size(); ++i) a[i] = float(i % 7) - 3.0f;
    CHECK(largest_magnitude(a.view()) == 3.0);
    a[at] = std::nanf("");
    CHECK(std::isnan(largest_magnitude(a.view())) && scale_of(a.view()) == 1.0);
  }
}

}  // namespace
}  // namespace lowrank

int main() {
  lowrank::philox_gives_the_published_vectors();
  lowrank::philox_is_addressed_by_position();
  lowrank::uniform_is_exact();
  lowrank::a_sketch_is_what_its_entries_say();
  lowrank::views();
  lowrank::buffers();
  lowrank::sums();
  lowrank::the_largest_magnitude_keeps_a_nan();
  lowrank::the_largest_magnitude_of<double>();
  lowrank::the_largest_magnitude_of<float>();
  lowrank::the_largest_magnitude_of<lowrank::bfloat16>();
  lowrank::the_largest_magnitude_of<lowrank::float16>();
  return lowrank::testing::finish();
}
