// view: what the core knows of an array. Pointer, shape and strides in ELEMENTS (never bytes), type, device.
// A View borrows: whoever made it keeps the memory alive for the length of the call.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "lowrank_core/checks.h"
#include "lowrank_core/half.h"

namespace lowrank {

enum class DType : uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16, kInt8, kUInt8, kInt32, kInt64 };

LRC_HD constexpr int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    case DType::kInt8:
    case DType::kUInt8:
      return 1;
  }
  return 0;
}

LRC_HD constexpr bool is_float(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

constexpr const char* name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kInt8:
      return "int8";
    case DType::kUInt8:
      return "uint8";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
  }
  return "unknown";
}

template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::kFloat32;
};
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::kFloat64;
};
template <>
struct dtype_of<bfloat16> {
  static constexpr DType value = DType::kBFloat16;
};
template <>
struct dtype_of<float16> {
  static constexpr DType value = DType::kFloat16;
};

// A matrix [rows, cols] with any strides; the unit of exchange between the families and the products.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0;
  int64_t row_stride = 0, col_stride = 0;

  LRC_HD Matrix transposed() const { return {data, dtype, cols, rows, col_stride, row_stride}; }
  LRC_HD bool empty() const { return rows == 0 || cols == 0; }

  template <class T>
  LRC_HD T* as() const {
    return static_cast<T*>(data);
  }

  // Rows [i, i + m) and columns [j, j + n).
  LRC_HD Matrix block(int64_t i, int64_t j, int64_t m, int64_t n) const {
    char* start = static_cast<char*>(data) + (i * row_stride + j * col_stride) * item_size(dtype);
    return {start, dtype, m, n, row_stride, col_stride};
  }
};

// A dense row-major matrix over memory that the caller owns.
template <class T>
LRC_HD Matrix row_major(T* data, int64_t rows, int64_t cols) {
  return {data, dtype_of<T>::value, rows, cols, cols, 1};
}

struct View {
  static constexpr int kMaxRank = 8;

  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{}, stride{};
  bool on_cuda = false;
  int device = 0;

  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }

  bool contiguous() const {
    if (size() == 0) return true;
    int64_t expected = 1;
    for (int i = rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && stride[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }

  // Number of matrices in a batched view [..., m, n].
  int64_t batch() const {
    int64_t n = 1;
    for (int i = 0; i + 2 < rank; ++i) n *= shape[i];
    return n;
  }

  // Matrix number `index` of a batched view, leading dimensions counted row-major.
  Matrix matrix(int64_t index = 0) const {
    LRC_CHECK(rank >= 2, "view: a matrix needs at least 2 dimensions, got " + std::to_string(rank));
    LRC_CHECK(index >= 0 && index < batch(),
              "view: matrix " + std::to_string(index) + " must be one of a batch of " + std::to_string(batch()));
    int64_t offset = 0;
    for (int i = rank - 3; i >= 0; --i) {
      offset += (index % shape[i]) * stride[i];
      index /= shape[i];
    }
    char* start = static_cast<char*>(data) + offset * item_size(dtype);
    return {start, dtype, shape[rank - 2], shape[rank - 1], stride[rank - 2], stride[rank - 1]};
  }
};

}  // namespace lowrank
