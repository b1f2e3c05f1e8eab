// buffer: uninitialised host memory for the length of one call, aligned to a cache line.
#pragma once

#include <cstdint>
#include <memory>

#include "lowrank_core/view.h"
#include "lowrank_core/workspace.h"

namespace lowrank {

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : Buffer(take_block(size_t(size > 0 ? size : 0) * sizeof(T)), size) {}

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  Buffer(const Block& block, int64_t size) : data_(static_cast<T*>(block.memory), {block.bytes}), size_(size) {}

  struct GiveBack {
    size_t bytes;
    void operator()(T* memory) const { give_block({memory, bytes}); }
  };
  std::unique_ptr<T[], GiveBack> data_;
  int64_t size_;
};

// A dense row-major matrix with memory of its own.
template <class T>
class MatrixBuffer : public Buffer<T> {
 public:
  MatrixBuffer(int64_t rows, int64_t cols) : Buffer<T>(rows * cols), rows_(rows), cols_(cols) {}

  // Another shape over the same memory, whose contents are then undefined.
  void reshape(int64_t rows, int64_t cols) {
    LRC_CHECK(rows * cols <= this->size(), "buffer: the new shape must fit the memory");
    rows_ = rows;
    cols_ = cols;
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  T* row(int64_t i) { return this->data() + i * cols_; }
  const T* row(int64_t i) const { return this->data() + i * cols_; }
  T& at(int64_t i, int64_t j) { return row(i)[j]; }
  Matrix view() { return row_major(this->data(), rows_, cols_); }

 private:
  int64_t rows_, cols_;
};

}  // namespace lowrank
