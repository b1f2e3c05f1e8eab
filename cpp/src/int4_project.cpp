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

// Some lines, and of each of them the groups [first, last).
struct Bundle {
  int lines;
  int64_t first, last;
  Place at[kBundle];
};

// Elements [begin, begin + count) of every line of a bundle, as floats.
struct Values {
  int64_t begin, count;
  float of[kBundle][kLargestGroup];
};

// Calls body(bundle) for all lines and groups, in parallel: bundles of `together` lines and as many groups as make a
// task.
template <class Body>
void for_each_bundle(const Lines& lines, const Format& format, int64_t together, const Body& body) {
  const int64_t groups = format.groups(lines.length), bundles = (lines.count + together - 1) / together;
  const int64_t run = std::max<int64_t>(1, kTask / (together * format.group)), runs = (groups + run - 1) / run;
  parallel_for(bundles * runs, [&](int64_t task) {
    const int64_t line = task / runs * together, first = task % runs * run;
    Bundle bundle{int(std::min(together, lines.count - line)), first, std::min(groups, first + run), {}};
    for (int w = 0; w < bundle.lines; ++w) bundle.at[w] = lines.at(line + w);
    body(bundle);
  });
}

// body(bundle, group, values) for every group, `values` with its bounds set. Neighbouring lines are close in memory, so
// what is strided along the lines is contiguous across them.
template <class Body>
void for_each_group(const Lines& lines, const Format& format, const Body& body) {
  for_each_bundle(lines, format, kBundle, [&](const Bundle& bundle) {
    Values values;
    for (int64_t g = bundle.first; g < bundle.last; ++g) {
      values.begin = g * format.group;
      values.count = std::min(format.group, lines.length - values.begin);
      body(bundle, g, values);
    }
  });
}

// ---- quantization ------------------------------------------------------------------------------------------------

template <class T>
void gather(Values& v, const Bundle& b, const T* x, int64_t step) {
  if (step == 1) {
    for (int w = 0; w < b.lines; ++w) {
      const T* from = x + b.at[w].array + v.begin;
      for (int64_t i = 0; i < v.count; ++i) v.of[w][i] = Store<float>::from(to_float(from[i]));
    }
    return;
  }
  for (int64_t i = 0; i < v.count; ++i) {
    for (int w = 0; w < b.lines; ++w) {
      v.of[w][i] = Store<float>::from(to_float(x[b.at[w].array + (v.begin + i) * step]));
    }
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
    if (x_.dtype == DType::kFloat32 && lines_.array_step == 1) return run_in_place();
    with_float_type(x_.dtype, [&](auto tag) {
      for_each_group(lines_, format_, [&](const Bundle& b, int64_t group, Values& values) {
        gather(values, b, static_cast<const decltype(tag)*>(x_.data), lines_.array_step);
        for (int w = 0; w < b.lines; ++w) encode(b.at[w], group, values.of[w], values.count);
      });
    });
  }

 private:
  void run_in_place() {
    // Whole lines one after the other where they are short, so that memory is read in long runs.
    const int64_t together = std::clamp<int64_t>(kTask / std::max<int64_t>(1, lines_.length), 1, kBundle);
    for_each_bundle(lines_, format_, together, [&](const Bundle& b) {
      const int64_t step = lines_.byte_step == 1 ? b.last - b.first : 1;
      for (int w = 0; w < b.lines; ++w) {
        const float* const line = static_cast<const float*>(x_.data) + b.at[w].array;
        for (int64_t g = b.first; g < b.last; g += step) {
          const int64_t begin = g * format_.group, end = std::min((g + step) * format_.group, lines_.length);
          encode(b.at[w], g, line + begin, end - begin);
        }
      }
    });
  }

  // `length` elements from the beginning of a group on: those of a task, or where bytes are strided of one group.
  void encode(const Place& at, int64_t group, const float* x, int64_t length) const {
    const int64_t half = format_.group / 2, groups = format_.groups(length);
    const int64_t element = at.element + group * format_.group * lines_.element_step;
    const Int4Run run{x,
                      length,
                      format_.group,
                      format_.scheme,
                      seed_.has_value(),
                      seed_.value_or(0),
                      uint64_t(element),
                      lines_.element_step};
    uint8_t* const to = static_cast<uint8_t*>(codes_.packed.data) + at.byte + group * half * lines_.byte_step;
    uint8_t own[kLargestGroup / 2];
    const bool strided = lines_.byte_step != 1;
    Stored stored[kTask / kGroupMultiple];
    Extremes refused;
    if (!LRC_AT_LEVEL(int4_encode, strided ? own : to, stored, &refused, run)) refuse(refused);
    for (int64_t i = 0; strided && i < half; ++i) to[i * lines_.byte_step] = own[i];
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t place = at.group + (group + i) * lines_.group_step;
      write(codes_.scales, place, stored[i].scale);
      if (codes_.offsets) write(*codes_.offsets, place, stored[i].offset);
    }
  }

  const Codes& codes_;
  const View& x_;
  const Format& format_;
  const std::optional<uint64_t> seed_;
  const Lines lines_;
};

// ---- dequantization ----------------------------------------------------------------------------------------------

template <class T>
void scatter(const Values& v, const Bundle& b, T* out, int64_t step) {
  if (step == 1) {
    for (int w = 0; w < b.lines; ++w) {
      T* const to = out + b.at[w].array + v.begin;
      for (int64_t i = 0; i < v.count; ++i) to[i] = Store<T>::from(v.of[w][i]);
    }
    return;
  }
  for (int64_t i = 0; i < v.count; ++i) {
    for (int w = 0; w < b.lines; ++w) out[b.at[w].array + (v.begin + i) * step] = Store<T>::from(v.of[w][i]);
  }
}

void decode(float* to, const Place& at, int64_t group, int64_t count, const Codes& codes, const Lines& lines,
            const Format& format) {
  const int64_t half = format.group / 2, used = (count + 1) / 2, step = lines.byte_step;
  const int64_t place = at.group + group * lines.group_step;
  const Grid g = grid(format.scheme, read(codes.scales, place), codes.offsets ? read(*codes.offsets, place) : 0.0f);
  const uint8_t* from = static_cast<const uint8_t*>(codes.packed.data) + at.byte + group * half * step;
  uint8_t own[kLargestGroup / 2];
  if (step != 1) {
    for (int64_t i = 0; i < used; ++i) own[i] = from[i * step];
    from = own;
  }
  LRC_AT_LEVEL(int4_decode, to, from, count, g, format.scheme == Scheme::kNf4);
}

}  // namespace

void quantize_cpu(const Codes& codes, const View& x, const Format& format, std::optional<uint64_t> seed) {
  if (x.size() > 0) Quantizer(codes, x, format, seed).run();
}

void dequantize_cpu(const View& out, const Codes& codes, const Format& format) {
  if (out.size() == 0) return;
  const Lines lines(out, format);
  const bool in_place = out.dtype == DType::kFloat32 && lines.array_step == 1;
  with_float_type(out.dtype, [&](auto tag) {
    auto* const data = static_cast<decltype(tag)*>(out.data);
    for_each_group(lines, format, [&](const Bundle& b, int64_t group, Values& values) {
      for (int w = 0; w < b.lines; ++w) {
        float* const to = in_place ? static_cast<float*>(out.data) + b.at[w].array + values.begin : values.of[w];
        decode(to, b.at[w], group, values.count, codes, lines, format);
      }
      if (!in_place) scatter(values, b, data, lines.array_step);
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
