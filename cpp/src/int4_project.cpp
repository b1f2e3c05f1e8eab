#include "lowrank_core/int4_project.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "int4_project_lines.h"
#include "lowrank_core/buffer.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/parallel.h"
#include "lowrank_core/simd/int4_project.h"

namespace lowrank::int4 {
namespace {

constexpr int kBundle = 16;                  // lines that are read and written together: neighbours in a cache line
constexpr int64_t kTask = int64_t(1) << 15;  // elements, about 10 us

template <class F>
void with_float_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(double{});
    case DType::kBFloat16:
      return f(bfloat16{});
    case DType::kFloat16:
      return f(float16{});
    case DType::kFloat32:
      return f(float{});
    default:
      fail(std::string("int4: the dtype must be a floating-point one, got ") + name(dtype));
  }
}

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

// One group of each line of a bundle.
struct Bundle {
  int64_t group, begin, count;  // of each line: elements [begin, begin + count)
  int lines;
  Place at[kBundle];
  float values[kBundle][kLargestGroup];
};

// Calls body(bundle) for every group of every line, bundles in parallel. A line keeps its place in memory close to
// those of its bundle, so what is strided along the lines is contiguous across them.
template <class Body>
void for_each_bundle(const Lines& lines, const Format& format, const Body& body) {
  const int64_t groups = format.groups(lines.length), bundles = (lines.count + kBundle - 1) / kBundle;
  const int64_t run = std::max<int64_t>(1, kTask / (kBundle * format.group)), runs = (groups + run - 1) / run;
  parallel_for(bundles * runs, [&](int64_t task) {
    Bundle bundle;
    const int64_t first = task / runs * kBundle;
    bundle.lines = int(std::min<int64_t>(kBundle, lines.count - first));
    for (int w = 0; w < bundle.lines; ++w) bundle.at[w] = lines.at(first + w);
    for (int64_t g = task % runs * run; g < std::min(groups, (task % runs + 1) * run); ++g) {
      bundle.group = g;
      bundle.begin = g * format.group;
      bundle.count = std::min(format.group, lines.length - bundle.begin);
      body(bundle);
    }
  });
}

// ---- quantization ------------------------------------------------------------------------------------------------

template <class T>
void gather(Bundle& b, const T* x, int64_t step) {
  if (step == 1) {
    for (int w = 0; w < b.lines; ++w) {
      const T* from = x + b.at[w].array + b.begin;
      for (int64_t i = 0; i < b.count; ++i) b.values[w][i] = Store<float>::from(to_float(from[i]));
    }
    return;
  }
  for (int64_t i = 0; i < b.count; ++i) {
    for (int w = 0; w < b.lines; ++w) {
      b.values[w][i] = Store<float>::from(to_float(x[b.at[w].array + (b.begin + i) * step]));
    }
  }
}

void draw(uint32_t* words, const Place& at, const Lines& lines, int64_t begin, int64_t count, uint64_t seed) {
  const uint64_t first = uint64_t(at.element + begin * lines.element_step);
  if (lines.element_step == 1) return rounding::draw(words, count, seed, {first, kStream, 0});
  for (int64_t i = 0; i < count; ++i) {
    words[i] = philox::bits(seed, {first + uint64_t(i * lines.element_step), kStream, 0});
  }
}

[[noreturn]] void refuse(Extremes x) {
  if (!rounding::finite(x.low) || !rounding::finite(x.high)) throw NotFinite();
  fail("quantize_int4: `x` must stay within 2**127 in magnitude and in the range of a group, got a group from " +
       std::to_string(x.low) + " to " + std::to_string(x.high) + "; divide it by a constant");
}

class Quantizer {
 public:
  Quantizer(const Codes& codes, const View& x, const Format& format, std::optional<uint64_t> seed)
      : codes_(codes), x_(x), format_(format), seed_(seed), lines_(x, format) {}

  void run() {
    if (x_.dtype == DType::kFloat32 && lines_.array_step == 1) {
      return for_each_bundle(lines_, format_, [&](Bundle& b) {
        for (int w = 0; w < b.lines; ++w) encode(b, w, static_cast<const float*>(x_.data) + b.at[w].array + b.begin);
      });
    }
    with_float_type(x_.dtype, [&](auto tag) {
      for_each_bundle(lines_, format_, [&](Bundle& b) {
        gather(b, static_cast<const decltype(tag)*>(x_.data), lines_.array_step);
        for (int w = 0; w < b.lines; ++w) encode(b, w, b.values[w]);
      });
    });
  }

 private:
  void encode(const Bundle& b, int w, const float* x) const {
    const Extremes range = LRC_AT_LEVEL(int4_extremes, x, b.count);
    if (!range.representable()) refuse(range);
    const Stored stored = fit(format_.scheme, range, seed_.has_value());
    const int64_t at = b.at[w].group + b.group * lines_.group_step;
    write(codes_.scales, at, stored.scale);
    if (codes_.offsets) write(*codes_.offsets, at, stored.offset);
    uint32_t words[kLargestGroup];
    if (seed_) draw(words, b.at[w], lines_, b.begin, b.count, *seed_);
    const Placement place = placement(format_.scheme, to_float(stored.scale), to_float(stored.offset));
    put(b, w, x, place, seed_ ? words : nullptr);
  }

  void put(const Bundle& b, int w, const float* x, const Placement& place, const uint32_t* words) const {
    const bool nf4 = format_.scheme == Scheme::kNf4;
    const int64_t half = format_.group / 2, used = (b.count + 1) / 2, step = lines_.byte_step;
    uint8_t* const to = static_cast<uint8_t*>(codes_.packed.data) + b.at[w].byte + b.group * half * step;
    if (step == 1) {
      LRC_AT_LEVEL(int4_encode, to, x, b.count, place, nf4, words);
      std::memset(to + used, 0, size_t(half - used));
      return;
    }
    uint8_t bytes[kLargestGroup / 2] = {};
    LRC_AT_LEVEL(int4_encode, bytes, x, b.count, place, nf4, words);
    for (int64_t i = 0; i < half; ++i) to[i * step] = bytes[i];
  }

  const Codes& codes_;
  const View& x_;
  const Format& format_;
  const std::optional<uint64_t> seed_;
  const Lines lines_;
};

// ---- dequantization ----------------------------------------------------------------------------------------------

template <class T>
void scatter(const Bundle& b, T* out, int64_t step) {
  if (step == 1) {
    for (int w = 0; w < b.lines; ++w) {
      T* const to = out + b.at[w].array + b.begin;
      for (int64_t i = 0; i < b.count; ++i) to[i] = Store<T>::from(b.values[w][i]);
    }
    return;
  }
  for (int64_t i = 0; i < b.count; ++i) {
    for (int w = 0; w < b.lines; ++w) out[b.at[w].array + (b.begin + i) * step] = Store<T>::from(b.values[w][i]);
  }
}

void decode_bundle(Bundle& b, const Codes& codes, const Lines& lines, const Format& format) {
  const int64_t half = format.group / 2, used = (b.count + 1) / 2, step = lines.byte_step;
  for (int w = 0; w < b.lines; ++w) {
    const int64_t at = b.at[w].group + b.group * lines.group_step;
    const Grid g = grid(format.scheme, read(codes.scales, at), codes.offsets ? read(*codes.offsets, at) : 0.0f);
    const uint8_t* from = static_cast<const uint8_t*>(codes.packed.data) + b.at[w].byte + b.group * half * step;
    uint8_t bytes[kLargestGroup / 2];
    if (step != 1) {
      for (int64_t i = 0; i < used; ++i) bytes[i] = from[i * step];
      from = bytes;
    }
    LRC_AT_LEVEL(int4_decode, b.values[w], from, b.count, g, format.scheme == Scheme::kNf4);
  }
}

}  // namespace

void quantize_cpu(const Codes& codes, const View& x, const Format& format, std::optional<uint64_t> seed) {
  if (x.size() > 0) Quantizer(codes, x, format, seed).run();
}

void dequantize_cpu(const View& out, const Codes& codes, const Format& format) {
  if (out.size() == 0) return;
  const Lines lines(out, format);
  with_float_type(out.dtype, [&](auto tag) {
    for_each_bundle(lines, format, [&](Bundle& b) {
      decode_bundle(b, codes, lines, format);
      scatter(b, static_cast<decltype(tag)*>(out.data), lines.array_step);
    });
  });
}

void project_cpu(const View& out, const Basis& basis, const View& x, const Format& format, bool back) {
  const int64_t groups = format.groups(format.dim == 0 ? basis.rows : basis.cols);
  const int64_t others = format.dim == 0 ? basis.cols : basis.rows;
  // The grids as float32, laid out like the scales: a hundredth of the codes' size.
  Buffer<float> scale(groups * others), base(groups * others);
  for (int64_t i = 0; i < groups * others; ++i) {
    const float offset = basis.codes.offsets ? read(*basis.codes.offsets, i) : 0.0f;
    const Grid g = grid(format.scheme, read(basis.codes.scales, i), offset);
    scale[i] = g.scale;
    base[i] = g.base;
  }
  // Codes run along i for the product; a matrix grouped along its columns is the transpose of one that is not.
  const bool along_rows = format.dim == 0;
  Int4Matrix packed{static_cast<const uint8_t*>(basis.codes.packed.data),
                    scale.data(),
                    base.data(),
                    0,
                    0,
                    1,
                    1,
                    1,
                    1,
                    format.group,
                    format.scheme == Scheme::kNf4};
  packed.rows = along_rows ? basis.rows : basis.cols;
  packed.cols = along_rows ? basis.cols : basis.rows;
  (along_rows ? packed.along : packed.across) = along_rows ? basis.cols : groups * format.group / 2;
  (along_rows ? packed.group_along : packed.group_across) = along_rows ? basis.cols : groups;
  for (int64_t i = 0; i < out.batch(); ++i) {
    const Matrix c = out.matrix(i);
    if (c.empty()) continue;
    const Int4Product product{c, packed, x.matrix(i), back == along_rows, better_transposed(c)};
    LRC_AT_LEVEL(int4_product, product);
  }
}

}  // namespace lowrank::int4
