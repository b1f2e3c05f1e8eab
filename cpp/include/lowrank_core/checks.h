// checks: the error type of the core and the macros every header needs.
//
// The operators own the contract and its wording; the checks here guard memory safety only, because NumPy
// users may reach the bindings directly. They are always on.
#pragma once

#include <stdexcept>
#include <string>

// A function of the host that is always inlined: one that is compiled at several instruction-set levels must not leave
// a weak symbol behind, or the linker could pick the AVX-512 copy for a CPU that has none.
#define LRC_INLINE inline __attribute__((always_inline))

// One of host and device: what states a formula. tests/cuda puts every one into a kernel.
#if defined(__CUDACC__)
#define LRC_HD __host__ __device__ __forceinline__
#else
#define LRC_HD LRC_INLINE
#endif

namespace lowrank {

// What a caller can mend; the bindings turn it into Python's ValueError.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// The memory behind an argument is none that a kernel can use; Python's _core.ArrayError, a ValueError.
class ArrayError : public Error {
 public:
  using Error::Error;
};

// Two arguments share memory, or one overlaps itself, where one of them is written; Python's _core.SharingError.
class SharingError : public ArrayError {
 public:
  using ArrayError::ArrayError;
};

// An argument holds NaN or infinity. Kernels notice it on the way; the operator says which argument.
class NotFinite : public std::runtime_error {
 public:
  NotFinite() : std::runtime_error("an argument must be finite, got NaN or infinity") {}
};

// An iteration that always ends did not, which no argument explains.
class NotConverged : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail(const std::string& text) { throw Error(text); }

}  // namespace lowrank

#define LRC_CHECK(condition, text)         \
  do {                                     \
    if (!(condition)) lowrank::fail(text); \
  } while (false)
