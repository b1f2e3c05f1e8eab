// isa: the instruction-set level that kernels run at, chosen once by CPUID and lowered, never raised, by
// LOWRANK_CORE_ISA=generic|avx2|avx512|avx512bf16|avx512amx or set_isa().
//
// What gains from wide vectors is in source files of the folders cpp/src/*/levels, compiled once per level with that
// level's flags and with LRC_LEVEL defined as its name. Such a file offers a table of functions:
//
//   struct Level {                                                    // in a header: what is asked of a level
//     void (*scale)(float* x, float by, int64_t n);
//     static const Level generic, avx2, avx512, avx512bf16;
//   };
//   constinit const Level Level::LRC_LEVEL = {LRC_LEVEL::scale};      // in the file: what this one does
//   at_level<Level>().scale(x, 2.0f, n);                              // a caller: by the one in use
//
// A table is of one level, and a level file names no other one's, so what is called through a table cannot mix them.
// avx512amx has the tables of avx512bf16: it adds one way to multiply (Arithmetic::kTiles), in cpp/src/core/amx.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

namespace lowrank {

enum class Isa { kGeneric = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAvx512Amx = 4 };

Isa isa();                         // the level in use: of the innermost LevelScope, else the one set
Isa detected_isa();                // the highest level that this CPU and this build have
void set_isa(const std::string&);  // throws Error for an unknown level or one above detected_isa()
const char* name(Isa level);
std::vector<std::string> isa_levels();  // those that can be chosen here, lowest first

// Keeps the calling thread at one level, so that a kernel does not change it on the way when another thread calls
// set_isa().
class LevelScope {
 public:
  explicit LevelScope(Isa level);
  ~LevelScope();
  LevelScope(const LevelScope&) = delete;
  LevelScope& operator=(const LevelScope&) = delete;

 private:
  const int before_;
};

// The table of the level in use.
template <class Table>
const Table& at_level() {
#if defined(LRC_HAVE_X86_LEVELS)
  switch (isa()) {
    case Isa::kAvx512Amx:
    case Isa::kAvx512Bf16:
      return Table::avx512bf16;
    case Isa::kAvx512:
      return Table::avx512;
    case Isa::kAvx2:
      return Table::avx2;
    case Isa::kGeneric:
      break;
  }
#endif
  return Table::generic;
}

// The functions of a table that exist for each type that kernels compute in.
template <template <class> class Functions>
struct ByType {
  Functions<float> single;
  Functions<double> twofold;

  template <class T>
  const Functions<T>& of() const {
    if constexpr (std::is_same_v<T, double>) {
      return twofold;
    } else {
      return single;
    }
  }
};

}  // namespace lowrank
