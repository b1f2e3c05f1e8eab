#include "lowrank_core/int4_project_cuda.h"

#include <climits>

#include "launch.cuh"
#include "lowrank_core/dispatch.h"
#include "lowrank_core/int4_project_address.h"

namespace lowrank::int4_project {
namespace {

// What belongs to the codes of an array, as a kernel sees it. Scales and offsets: bfloat16, or float32 with its values.
struct Memory {
  uint8_t* packed;
  void *scales, *offsets;  // offsets may be null
  bool narrow;             // bfloat16

  static Memory of(const Codes& codes) {
    return {static_cast<uint8_t*>(codes.packed.data), codes.scales.data, codes.offsets ? codes.offsets->data : nullptr,
            codes.scales.dtype == DType::kBFloat16};
  }
  __device__ void write(void* grids, int64_t at, bfloat16 value) const {
    if (narrow) {
      static_cast<bfloat16*>(grids)[at] = value;
    } else {
      static_cast<float*>(grids)[at] = to_float(value);
    }
  }
  __device__ float read(const void* grids, int64_t at) const {
    return narrow ? to_float(static_cast<const bfloat16*>(grids)[at]) : static_cast<const float*>(grids)[at];
  }
};

// A group of one line, of `count` elements from `begin` on.
struct Part {
  int64_t line, group, begin, count;
};

// The part of number `item`. Where lines lie side by side, so do the parts of neighbouring numbers.
__device__ Part part_of(int64_t item, const Lines& lines, const Format& format, bool side_by_side) {
  const int64_t groups = format.groups(lines.length);
  const int64_t line = side_by_side ? item % lines.count : item / groups;
  const int64_t group = side_by_side ? item / lines.count : item % groups;
  const int64_t begin = group * format.group, left = lines.length - begin;
  return {line, group, begin, left < format.group ? left : format.group};
}

__device__ int code_at(float place, int shift, bool nf4, bool stochastic, uint64_t seed, int64_t element) {
  if (!stochastic) return nf4 ? nearest_nf4_code(place) : nearest_even_code(place, shift);
  const float uniform = philox::uniform(philox::bits(seed, draw_position(uint64_t(element))));
  return nf4 ? stochastic_nf4_code(place, uniform) : stochastic_even_code(place, shift, uniform);
}

// kTeam threads, a warp or one alone, take a group: one alone where lines lie side by side. What they read twice is in
// the cache the second time. `refused`: whether a group has no codes.
template <class T, int kTeam>
__global__ void quantize_kernel(const T* x, Lines lines, Format format, Memory memory, bool stochastic, uint64_t seed,
                                int32_t* refused) {
  const int64_t groups = format.groups(lines.length);
  const int member = kTeam == 1 ? 0 : cuda::lane();
  const int64_t stride = cuda::item_stride() / kTeam;
  for (int64_t item = cuda::first_item() / kTeam; item < lines.count * groups; item += stride) {
    const Part part = part_of(item, lines, format, kTeam == 1);
    const Place place = lines.at(part.line);
    const auto value = [&](int64_t i) {
      return Store<float>::from(to_float(x[lines.array_at(place, part.begin + i)]));
    };
    int32_t low = INT_MAX, high = INT_MIN;
    for (int64_t i = member; i < part.count; i += kTeam) {
      const int32_t key = rounding::ordered(value(i));
      low = key < low ? key : low;
      high = key > high ? key : high;
    }
    for (int with = kTeam / 2; with > 0; with /= 2) {
      const int32_t other_low = __shfl_xor_sync(~0u, low, with), other_high = __shfl_xor_sync(~0u, high, with);
      low = other_low < low ? other_low : low;
      high = other_high > high ? other_high : high;
    }
    const Extremes range{rounding::from_ordered(low), rounding::from_ordered(high)};
    if (!range.representable()) {
      if (member == 0) *refused = 1;
      continue;
    }
    const Stored stored = fit(format.scheme, range, stochastic);
    if (member == 0) {
      const int64_t at = lines.group_at(place, part.group);
      memory.write(memory.scales, at, stored.scale);
      if (memory.offsets) memory.write(memory.offsets, at, stored.offset);
    }
    const Placement among = placement(format.scheme, to_float(stored.scale), to_float(stored.offset));
    const bool nf4 = format.scheme == Scheme::kNf4;
    const auto code = [&](int64_t i) {
      if (i >= part.count) return 0;
      const int64_t element = lines.element_at(place, part.begin + i);
      return code_at(among(value(i)), among.shift, nf4, stochastic, seed, element);
    };
    const int64_t half = format.group / 2;
    for (int64_t i = member; i < half; i += kTeam)
      memory.packed[lines.byte_at(place, part.group * half + i)] = byte_of(code(2 * i), code(2 * i + 1));
  }
}

// What a code stands for: a thread that indexed a table of its own would keep it in its slow local memory.
struct Numbers {
  float of_code[16];
};

// One thread for each byte, which is two elements.
template <class T>
__global__ void dequantize_kernel(T* out, Lines lines, Format format, Memory memory, bool side_by_side) {
  const int64_t half = format.group / 2, bytes = ceil_div(lines.length, 2);
  Numbers& numbers = cuda::shared<Numbers>();
  const auto fill = [&]<size_t... K>(std::index_sequence<K...>) {
    ((threadIdx.x == K ? void(numbers.of_code[K] = number_of(int(K), format.scheme == Scheme::kNf4)) : void()), ...);
  };
  fill(std::make_index_sequence<16>());
  __syncthreads();
  for (int64_t item = cuda::first_item(); item < lines.count * bytes; item += cuda::item_stride()) {
    const int64_t line = side_by_side ? item % lines.count : item / bytes;
    const int64_t pair = side_by_side ? item / lines.count : item % bytes;
    const Place place = lines.at(line);
    const int64_t at = lines.group_at(place, pair / half);
    const float offset = memory.offsets ? memory.read(memory.offsets, at) : 0.0f;
    const Grid g = grid(format.scheme, memory.read(memory.scales, at), offset);
    const uint8_t byte = memory.packed[lines.byte_at(place, pair)];
    for (int64_t i = 2 * pair; i < lines.length && i < 2 * pair + 2; ++i)
      out[lines.array_at(place, i)] = Store<T>::from(decode(g, numbers.of_code[code_of(byte, i)]));
  }
}

}  // namespace

void quantize_cuda(const Codes& codes, const View& x, const Format& format, std::optional<uint64_t> seed,
                   const View& refused, void* stream) {
  if (x.size() == 0) return;
  const cuda::DeviceGuard guard(x.device);
  const Lines lines(x, format);
  const int64_t items = lines.count * format.groups(lines.length);
  with_checked_float_type(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool alone = lines.array_step != 1;
    cuda::launch("quantize_int4", alone ? quantize_kernel<T, 1> : quantize_kernel<T, cuda::kWarp>,
                 cuda::blocks_for(alone ? items : items * cuda::kWarp), cuda::kThreads, 0, stream,
                 static_cast<const T*>(x.data), lines, format, Memory::of(codes), seed.has_value(), seed.value_or(0),
                 static_cast<int32_t*>(refused.data));
  });
}

void dequantize_cuda(const View& out, const Codes& codes, const Format& format, void* stream) {
  if (out.size() == 0) return;
  const cuda::DeviceGuard guard(out.device);
  const Lines lines(out, format);
  with_checked_float_type(out.dtype, [&](auto tag) {
    using T = decltype(tag);
    cuda::launch("dequantize_int4", dequantize_kernel<T>, cuda::blocks_for(lines.count * ceil_div(lines.length, 2)),
                 cuda::kThreads, sizeof(Numbers), stream, static_cast<T*>(out.data), lines, format, Memory::of(codes),
                 lines.array_step != 1);
  });
}

}  // namespace lowrank::int4_project
