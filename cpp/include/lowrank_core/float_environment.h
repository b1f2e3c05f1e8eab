// float_environment: how the processor treats denormals, ties and floating-point traps, held at IEEE 754's defaults
// while a kernel runs. The caller's own mode (torch.set_flush_denormal, fesetround, a library built with -ffast-math)
// would otherwise decide bits, and another mode in each thread other bits in each run.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace lowrank {

// The defaults for the calling thread; what it had before, sticky flags included, comes back at the end.
class FloatEnvironment {
 public:
  FloatEnvironment() : before_(read()) { write(defaults()); }
  ~FloatEnvironment() { write(before_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__x86_64__) || defined(_M_X64)
  using Mode = uint32_t;
  // MXCSR: every exception masked, to nearest, denormals neither flushed nor taken for zero.
  static Mode defaults() { return 0x1F80; }
  static Mode read() { return _mm_getcsr(); }
  static void write(Mode mode) {
    _mm_setcsr(mode);
    __asm__ volatile("" ::: "memory");  // nothing that reads memory moves to the other side
  }
#elif defined(__aarch64__)
  using Mode = uint64_t;
  // FPCR: the same.
  static Mode defaults() { return 0; }
  static Mode read() {
    Mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void write(Mode mode) { __asm__ volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
#else
  using Mode = std::fenv_t;
  static Mode defaults() { return *FE_DFL_ENV; }
  static Mode read() {
    Mode mode;
    std::fegetenv(&mode);
    return mode;
  }
  static void write(const Mode& mode) { std::fesetenv(&mode); }
#endif

  const Mode before_;
};

}  // namespace lowrank
