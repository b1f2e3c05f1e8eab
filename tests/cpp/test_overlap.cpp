// Whether arrays share memory, against the set of bytes that they reach.
#include "lowrank_core/overlap.h"

#include <set>
#include <vector>

#include "check.h"
#include "lowrank_core/philox.h"

namespace lowrank {
namespace {

alignas(8) char memory[1 << 14];
constexpr int64_t kMiddle = 1 << 13;

View view(int64_t at, DType dtype, const std::vector<int64_t>& shape, const std::vector<int64_t>& stride) {
  View v;
  v.data = memory + kMiddle + at;
  v.dtype = dtype;
  v.rank = int(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    v.shape[i] = shape[i];
    v.stride[i] = stride[i];
  }
  return v;
}

// The offsets of all elements, with repeats.
std::vector<int64_t> offsets(const View& v) {
  std::vector<int64_t> found{static_cast<char*>(v.data) - memory};
  for (int i = 0; i < v.rank; ++i) {
    std::vector<int64_t> next;
    for (const int64_t at : found) {
      for (int64_t k = 0; k < v.shape[size_t(i)]; ++k)
        next.push_back(at + k * v.stride[size_t(i)] * item_size(v.dtype));
    }
    found = next;
  }
  return found;
}

std::set<int64_t> bytes(const View& v) {
  std::set<int64_t> all;
  for (const int64_t at : offsets(v)) {
    for (int64_t b = 0; b < item_size(v.dtype); ++b) all.insert(at + b);
  }
  return all;
}

bool truly_overlaps_itself(const View& v) {
  return int64_t(bytes(v).size()) < int64_t(offsets(v).size()) * item_size(v.dtype);
}

bool truly_overlap(const View& a, const View& b) {
  const std::set<int64_t> first = bytes(a);
  for (const int64_t at : bytes(b)) {
    if (first.count(at)) return true;
  }
  return false;
}

constexpr DType kF32 = DType::kFloat32;

void names_the_ordinary_cases() {
  const View matrix = view(0, kF32, {6, 8}, {8, 1});
  CHECK(!overlaps_itself(matrix) && overlap(matrix, matrix));
  CHECK(!overlaps_itself(view(0, kF32, {6, 8}, {1, 6})));
  CHECK(overlaps_itself(view(0, kF32, {6, 8}, {0, 1})) && overlaps_itself(view(0, kF32, {6, 8}, {1, 1})));
  CHECK(overlaps_itself(view(0, kF32, {6, 8}, {4, 1})));   // rows that begin in the middle of others
  CHECK(!overlaps_itself(view(0, kF32, {2, 3}, {3, 2})));  // elements 0 2 4 3 5 7
  CHECK(!overlaps_itself(view(0, kF32, {1, 8}, {0, 1})) && !overlaps_itself(view(0, kF32, {0, 8}, {0, 0})));
  // Columns of one matrix interleave and share nothing; the same with their rows backwards, or as rows.
  const View left = view(0, kF32, {6, 4}, {8, 1}), right = view(16, kF32, {6, 4}, {8, 1});
  CHECK(!overlap(left, right) && !overlap(right, left));
  CHECK(!overlap(left, view(16, kF32, {4, 6}, {1, 8})));
  CHECK(!overlap(view(5 * 32, kF32, {6, 4}, {-8, 1}), right) && overlap(view(5 * 32, kF32, {6, 4}, {-8, 1}), left));
  CHECK(overlap(left, view(12, kF32, {6, 4}, {8, 1})));
  // A broadcast row, and bytes of floats.
  CHECK(overlap(view(0, kF32, {9, 4}, {0, 1}), left) && !overlap(view(16, kF32, {9, 4}, {0, 1}), left));
  CHECK(overlap(view(3, DType::kUInt8, {1}, {1}), left) && !overlap(view(16, DType::kUInt8, {16}, {1}), left));
  CHECK(!overlap(view(0, kF32, {0, 4}, {8, 1}), left));
}

void agrees_with_the_sets_of_bytes() {
  uint64_t drawn = 0;
  const auto draw = [&](int64_t most) { return int64_t(philox::bits(7, {drawn++, 1, 0}) % uint64_t(most + 1)); };
  const DType dtypes[] = {DType::kUInt8, DType::kFloat16, kF32, DType::kFloat64};
  const auto random = [&] {
    const DType dtype = dtypes[draw(3)];
    std::vector<int64_t> shape(size_t(draw(3))), stride(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) {
      shape[i] = draw(4);
      stride[i] = draw(24) - 8;
    }
    return view(draw(15) * item_size(dtype), dtype, shape, stride);
  };
  int selves = 0, pairs = 0;
  for (int i = 0; i < 4000; ++i) {
    const View a = random(), b = random();
    CHECK(overlaps_itself(a) == truly_overlaps_itself(a));
    CHECK(overlap(a, b) == truly_overlap(a, b));
    selves += overlaps_itself(a);
    pairs += overlap(a, b);
  }
  CHECK(selves > 200 && selves < 3800 && pairs > 200 && pairs < 3800);  // both answers were asked for
}

}  // namespace
}  // namespace lowrank

int main() {
  lowrank::names_the_ordinary_cases();
  lowrank::agrees_with_the_sets_of_bytes();
  return lowrank::testing::finish();
}
