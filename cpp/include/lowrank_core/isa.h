// isa: the instruction-set level that kernels run at, chosen once by CPUID and lowered, never raised, by
// LOWRANK_CORE_ISA=generic|avx2|avx512|avx512bf16 or set_isa().
//
// A kernel that gains from wide vectors is one source file in a folder cpp/src/*/levels/, compiled once per level with
// that level's flags and with LRC_LEVEL defined as the level's namespace. Such a file exports plain functions in
// namespace lowrank::LRC_LEVEL and is called through LRC_AT_LEVEL.
#pragma once

#include <string>
#include <vector>

namespace lowrank {

enum class Isa { kGeneric = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

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

}  // namespace lowrank

// Declares `function` in every level's namespace; to be written at namespace lowrank scope.
#if defined(LRC_HAVE_X86_LEVELS)
#define LRC_DECLARE_AT_LEVELS(...) \
  namespace generic {              \
  __VA_ARGS__;                     \
  }                                \
  namespace avx2 {                 \
  __VA_ARGS__;                     \
  }                                \
  namespace avx512 {               \
  __VA_ARGS__;                     \
  }                                \
  namespace avx512bf16 {           \
  __VA_ARGS__;                     \
  }
#define LRC_AT_LEVEL(function, ...)                          \
  [&] {                                                      \
    switch (::lowrank::isa()) {                              \
      case ::lowrank::Isa::kAvx512Bf16:                      \
        return ::lowrank::avx512bf16::function(__VA_ARGS__); \
      case ::lowrank::Isa::kAvx512:                          \
        return ::lowrank::avx512::function(__VA_ARGS__);     \
      case ::lowrank::Isa::kAvx2:                            \
        return ::lowrank::avx2::function(__VA_ARGS__);       \
      default:                                               \
        return ::lowrank::generic::function(__VA_ARGS__);    \
    }                                                        \
  }()
#else
#define LRC_DECLARE_AT_LEVELS(...) \
  namespace generic {              \
  __VA_ARGS__;                     \
  }
#define LRC_AT_LEVEL(function, ...) ::lowrank::generic::function(__VA_ARGS__)
#endif
