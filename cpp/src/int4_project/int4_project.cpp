#include "lowrank_core/int4_project.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "int4_project/level.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/int4_project_address.h"
#include "lowrank_core/parallel.h"

namespace lowrank::int4_project {
namespace {

constexpr int kTileLines = 64;  // lines that are read and written together: neighbours in a cache line
constexpr int64_t kAhead = 16;  // steps along a line: what a processor does not prefetch where they are far apart
constexpr int64_t kTask = int64_t(1) << 15;  // elements, about 10 us

float read(const View& view, int64_t at) {
  return view.dtype == DType::kBFloat16 ? to_float(static_cast<const bfloat16*>(view.data)[at])
                                        : static_cast<const float*>(view.data)[at];
}

void write(const View& view, int64_t at, bfloat16 value) {
  if (view.dtype == DType::kBFloat16) {
    static_cast<bfloat16*>(view.data)[at] = value;
  } else {
    static_cast<float*>(view.data)[at] = to_float(value);
  }
}

// Some lines, and of each of them the groups [first, last).
struct LineTile {
  int lines;
  int64_t first, last;
  Place at[kTileLines];
};

// One group of every line of a tile: elements [begin, begin + count) as floats, and their bytes. The odd ends keep
// the lines apart in the cache.
struct Part {
  int64_t group, begin, count;
  float values[kTileLines][kLargestGroup + 16];
  uint8_t bytes[kTileLines][kLargestGroup / 2 + 16];
};

// Calls body(tile) for all lines and groups, in parallel, a task at a time. Along contiguous lines memory is read in
// long runs; else many lines go together, whose neighbours lie next to each other.
template <class Body>
void for_each_tile(const Lines& lines, const Format& format, const Body& body) {
  const int64_t fitting = std::clamp<int64_t>(kTask / std::max<int64_t>(1, lines.length), 1, kTileLines);
  const int64_t together = lines.array_step == 1 ? fitting : kTileLines;
  const int64_t groups = format.groups(lines.length), tiles = ceil_div(lines.count, together);
  const int64_t run = std::max<int64_t>(1, kTask / (together * format.group)), runs = ceil_div(groups, run);
  parallel_for(tiles * runs, [&](int64_t task) {
    const int64_t line = task / runs * together, first = task % runs * run;
    LineTile tile{int(std::min(together, lines.count - line)), first, std::min(groups, first + run), {}};
    for (int w = 0; w < tile.lines; ++w) tile.at[w] = lines.at(line + w);
    body(tile);
  });
}

// body(tile, part) for every group.
template <class Body>
void for_each_part(const Lines& lines, const Format& format, const Body& body) {
  for_each_tile(lines, format, [&](const LineTile& tile) {
    Part part;
    for (part.group = tile.first; part.group < tile.last; ++part.group) {
      part.begin = part.group * format.group;
      part.count = std::min(format.group, lines.length - part.begin);
      body(tile, part);
    }
  });
}

// f(w, i) for element i < count of every line w, in the order of memory.
template <class F>
void for_each_element(const LineTile& tile, int64_t count, int64_t step, const F& f) {
  if (step == 1) {
    for (int w = 0; w < tile.lines; ++w) {
      for (int64_t i = 0; i < count; ++i) f(w, i);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      for (int w = 0; w < tile.lines; ++w) f(w, i);
    }
  }
}

// ---- quantization ------------------------------------------------------------------------------------------------

// The ends of a group as the array has them: float64 may be finite where float32, which is coded, is not.
[[noreturn]] void refuse(double low, double high) {
  std::array<char, 64> range{};
  std::snprintf(range.data(), range.size(), "%.9g to %.9g", low, high);
  fail("quantize_int4: `x` must stay within 2**127 in magnitude and in the range of a group, got a group from " +
       std::string(range.data()) + "; divide it by a constant");
}

class Quantizer {
 public:
  Quantizer(const Codes& codes, const View& x, const Format& format, std::optional<uint64_t> seed)
      : codes_(codes), x_(x), format_(format), seed_(seed), lines_(x, format) {}

  void run() {
    if (x_.dtype == DType::kFloat32 && lines_.array_step == 1 && lines_.byte_step == 1) return run_in_place();
    with_checked_float_type(x_.dtype, [&](auto tag) {
      const auto* const x = static_cast<const decltype(tag)*>(x_.data);
      auto* const packed = static_cast<uint8_t*>(codes_.packed.data);
      const int64_t step = lines_.array_step, byte_step = lines_.byte_step, half = format_.group / 2;
      for_each_part(lines_, format_, [&](const LineTile& tile, Part& part) {
        const Lines lines = lines_;  // which stores of bytes cannot change for all that the compiler knows
        for_each_element(tile, part.count, step, [&](int w, int64_t i) {
          const auto* const from = x + lines.array_at(tile.at[w], part.begin + i);
          if (w % 16 == 0) __builtin_prefetch(from + kAhead * step);
          part.values[w][i] = Store<float>::from(to_float(*from));
        });
        for (int w = 0; w < tile.lines; ++w) encode(part.bytes[w], tile.at[w], part.group, part.values[w], part.count);
        for_each_element(tile, half, byte_step, [&](int w, int64_t i) {
          packed[lines.byte_at(tile.at[w], part.group * half + i)] = part.bytes[w][i];
        });
      });
    });
  }

 private:
  void run_in_place() {
    for_each_tile(lines_, format_, [&](const LineTile& tile) {
      const int64_t begin = tile.first * format_.group, end = std::min(tile.last * format_.group, lines_.length);
      for (int w = 0; w < tile.lines; ++w) {
        uint8_t* const to = static_cast<uint8_t*>(codes_.packed.data) + tile.at[w].byte + begin / 2;
        encode(to, tile.at[w], tile.first, static_cast<const float*>(x_.data) + tile.at[w].array + begin, end - begin);
      }
    });
  }

  // `length` elements of a line from the beginning of `group` on, at most those of a task.
  void encode(uint8_t* bytes, const Place& at, int64_t group, const float* x, int64_t length) const {
    const int64_t groups = format_.groups(length);
    const int64_t element = lines_.element_at(at, group * format_.group);
    const CodeRun run{.x = x,
                      .length = length,
                      .group = format_.group,
                      .scheme = format_.scheme,
                      .stochastic = seed_.has_value(),
                      .seed = seed_.value_or(0),
                      .element = uint64_t(element),
                      .element_step = lines_.element_step};
    Stored stored[kTask / kGroupMultiple];
    if (!code_level().encode(bytes, stored, run)) refuse_first(at, group, length);
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t place = lines_.group_at(at, group + i);
      write(codes_.scales, place, stored[i].scale);
      if (codes_.offsets) write(*codes_.offsets, place, stored[i].offset);
    }
  }

  // For the first group of a line that cannot be coded, from `group` on.
  [[noreturn]] void refuse_first(const Place& at, int64_t group, int64_t length) const {
    double low = 0.0, high = 0.0;
    with_checked_float_type(x_.dtype, [&](auto tag) {
      const auto* const x = static_cast<const decltype(tag)*>(x_.data) + at.array;
      const int64_t begin = group * format_.group;
      bool coded = true;
      for (int64_t from = 0; coded && from < length; from += format_.group) {
        low = high = to_float(x[(begin + from) * lines_.array_step]);
        for (int64_t i = from; i < std::min(length, from + format_.group); ++i) {
          const double value = to_float(x[(begin + i) * lines_.array_step]);
          if (!std::isfinite(value)) throw NotFinite();
          low = std::min(low, value);
          high = std::max(high, value);
        }
        coded = Extremes{float(low), float(high)}.representable();
      }
    });
    refuse(low, high);
  }

  const Codes& codes_;
  const View& x_;
  const Format& format_;
  const std::optional<uint64_t> seed_;
  const Lines lines_;
};

// ---- dequantization ----------------------------------------------------------------------------------------------

Grid grid_at(const Codes& codes, const Format& format, int64_t at) {
  return grid(format.scheme, read(codes.scales, at), codes.offsets ? read(*codes.offsets, at) : 0.0f);
}

// One group of every line to part.values, or where memory allows it to `in_place`.
void decode(Part& part, const LineTile& tile, const Codes& codes, const Lines& lines, const Format& format,
            float* in_place) {
  const auto* const packed = static_cast<const uint8_t*>(codes.packed.data);
  const int64_t first = part.group * (format.group / 2), step = lines.byte_step;
  if (step != 1) {
    const Lines own = lines;  // as in Quantizer::run
    for_each_element(tile, (part.count + 1) / 2, step,
                     [&](int w, int64_t i) { part.bytes[w][i] = packed[own.byte_at(tile.at[w], first + i)]; });
  }
  const CodeLevel& level = code_level();  // a group is decoded in the time of a few such calls
  for (int w = 0; w < tile.lines; ++w) {
    const uint8_t* const from = step == 1 ? packed + tile.at[w].byte + first : part.bytes[w];
    float* const to = in_place ? in_place + tile.at[w].array + part.begin : part.values[w];
    const Grid g = grid_at(codes, format, lines.group_at(tile.at[w], part.group));
    level.decode(to, from, part.count, g, format.scheme == Scheme::kNf4);
  }
}

// Whether the product is computed as cᵀ. A short c takes the basis from the left although its other side is longer: all
// its rows are one block, so both operands are still read once, and c is written along its rows.
bool from_the_right(const Matrix& c) {
  constexpr int64_t thin = 8, block = 256;
  const bool is_short = c.rows > thin && c.rows <= block && c.cols >= c.rows && c.col_stride == 1;
  return !is_short && better_transposed(c);
}

}  // namespace

void quantize_cpu(const Codes& codes, const View& x, const Format& format, std::optional<uint64_t> seed) {
  if (x.size() > 0) Quantizer(codes, x, format, seed).run();
}

void dequantize_cpu(const View& out, const Codes& codes, const Format& format) {
  if (out.size() == 0) return;
  const Lines lines(out, format);
  const int64_t step = lines.array_step;
  float* const in_place = out.dtype == DType::kFloat32 && step == 1 ? static_cast<float*>(out.data) : nullptr;
  with_checked_float_type(out.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_each_part(lines, format, [&](const LineTile& tile, Part& part) {
      decode(part, tile, codes, lines, format, in_place);
      if (in_place) return;
      for_each_element(tile, part.count, step, [&](int w, int64_t i) {
        static_cast<T*>(out.data)[lines.array_at(tile.at[w], part.begin + i)] = Store<T>::from(part.values[w][i]);
      });
    });
  });
}

void dequantize_list_cpu(const std::vector<Decoding>& list) {
  parallel_for(int64_t(list.size()), [&](int64_t i) {
    const Decoding& one = list[size_t(i)];
    dequantize_cpu(one.out, one.codes, one.format);
  });
}

void project_cpu(const View& out, const Basis& basis, const View& x, const Format& format, bool back) {
  const int64_t groups = format.groups(format.dim == 0 ? basis.rows : basis.cols);
  const int64_t others = format.dim == 0 ? basis.cols : basis.rows;
  // The grids as float32, laid out like the scales: a hundredth of the codes' size.
  Buffer<float> scale(groups * others), base(groups * others);
  for (int64_t i = 0; i < groups * others; ++i) {
    const Grid g = grid_at(basis.codes, format, i);
    scale[i] = g.scale;
    base[i] = g.base;
  }
  // Codes run along i for the product; a matrix grouped along its columns is the transpose of one that is not.
  const bool along_rows = format.dim == 0;
  const PackedMatrix packed{.bytes = static_cast<const uint8_t*>(basis.codes.packed.data),
                            .scale = scale.data(),
                            .base = base.data(),
                            .rows = along_rows ? basis.rows : basis.cols,
                            .cols = along_rows ? basis.cols : basis.rows,
                            .along = along_rows ? basis.cols : 1,
                            .across = along_rows ? 1 : format.bytes(basis.cols),
                            .group_along = along_rows ? basis.cols : 1,
                            .group_across = along_rows ? 1 : groups,
                            .group = format.group,
                            .nf4 = format.scheme == Scheme::kNf4};
  for (int64_t i = 0; i < out.batch(); ++i) {
    const Matrix c = out.matrix(i);
    if (c.empty()) continue;
    const PackedProduct product{c, packed, x.matrix(i), back == along_rows, from_the_right(c)};
    product_level().multiply(product);
  }
}

}  // namespace lowrank::int4_project
