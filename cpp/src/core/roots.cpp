#include "lowrank_core/roots.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace lowrank {
namespace {

// What torch asks of MKL: high accuracy, denormal numbers as they are, no report of errors (mkl_vml_defines.h).
constexpr int64_t kMode = 0x2 | 0x140000 | 0x100;

// vmsSqrt(n, from, to, mode). MKL's n is of 32 or 64 bits, by its interface; a small number is the same in both.
template <class T>
using MklFunction = void (*)(int64_t n, const T* from, T* to, int64_t mode);

// mkl_set_num_threads_local: of the calling thread; the number before.
using MklThreads = int (*)(int count);

// A function of the library that torch has loaded, or of one that it is linked to. Nothing is loaded here.
template <class Function>
Function find(const char* symbol) {
#if defined(__linux__) && defined(__x86_64__)
  if (void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD)) {
    return reinterpret_cast<Function>(dlsym(library, symbol));
  }
#else
  (void)symbol;
#endif
  return nullptr;
}

template <class T>
MklFunction<T> found();
template <>
MklFunction<float> found() {
  static const auto function = find<MklFunction<float>>("vmsSqrt");
  return function;
}
template <>
MklFunction<double> found() {
  static const auto function = find<MklFunction<double>>("vmdSqrt");
  return function;
}

template <class T>
void take(int64_t n, const T* from, T* to) {
  found<T>()(n, from, to, kMode);
}

MklThreads mkl_threads() {
  static const auto function = find<MklThreads>("MKL_Set_Num_Threads_Local");
  return function;
}

}  // namespace

OneMklThread::OneMklThread() : before_(mkl_threads() ? mkl_threads()(1) : 0) {}
OneMklThread::~OneMklThread() {
  if (mkl_threads()) mkl_threads()(before_);
}

template <>
RootsOf<float> mkl_roots() {
  return found<float>() ? take<float> : nullptr;
}
template <>
RootsOf<double> mkl_roots() {
  return found<double>() ? take<double> : nullptr;
}

}  // namespace lowrank
