#include "lowrank_core/isa.h"

#if defined(LRC_HAVE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>

#include "lowrank_core/checks.h"

namespace lowrank {
namespace {

constexpr Isa kLevels[] = {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAvx512Amx};

#if defined(LRC_HAVE_AMX)
// Whether the CPU has bfloat16 tiles, the system saves their registers, and this process may use them: Linux wants to
// be asked once (arch_prctl), since a signal's frame grows by the 8 KB of the registers. Threads and forks inherit it.
bool may_use_tiles() {
  constexpr unsigned bfloat16_and_tiles = 1u << 22 | 1u << 24, config_and_data = 1u << 17 | 1u << 18;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & bfloat16_and_tiles) != bfloat16_and_tiles) return false;
  unsigned saved = 0, upper = 0;
  asm("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
  if ((saved & config_and_data) != config_and_data) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#elif defined(LRC_HAVE_X86_LEVELS)
bool may_use_tiles() { return false; }
#endif

Isa detect() {
#if defined(LRC_HAVE_X86_LEVELS)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("x86-64-v3")) return Isa::kGeneric;
  if (!__builtin_cpu_supports("x86-64-v4")) return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return Isa::kAvx512;
  return may_use_tiles() ? Isa::kAvx512Amx : Isa::kAvx512Bf16;
#else
  return Isa::kGeneric;
#endif
}

std::string choices() {
  std::string text;
  for (const std::string& level : isa_levels()) text.append(text.empty() ? "" : ", ").append(level);
  return text;
}

Isa parse(const std::string& text) {
  for (const Isa level : kLevels) {
    if (text == name(level) && level <= detected_isa()) return level;
  }
  fail("isa: the level must be one of " + choices() + " on this machine, got '" + text + "'");
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> level = [] {
    const char* forced = std::getenv("LOWRANK_CORE_ISA");
    return forced && *forced ? parse(forced) : detected_isa();
  }();
  return level;
}

constexpr int kNoLevel = -1;
thread_local int level_of_thread = kNoLevel;

}  // namespace

Isa detected_isa() {
  static const Isa level = detect();
  return level;
}

Isa isa() { return level_of_thread == kNoLevel ? current().load(std::memory_order_relaxed) : Isa(level_of_thread); }

void set_isa(const std::string& text) { current().store(parse(text)); }

LevelScope::LevelScope(Isa level) : before_(level_of_thread) { level_of_thread = int(level); }

LevelScope::~LevelScope() { level_of_thread = before_; }

const char* name(Isa level) {
  switch (level) {
    case Isa::kAvx512Amx:
      return "avx512amx";
    case Isa::kAvx512Bf16:
      return "avx512bf16";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kGeneric:
      break;
  }
  return "generic";
}

std::vector<std::string> isa_levels() {
  std::vector<std::string> levels;
  for (const Isa level : kLevels) {
    if (level <= detected_isa()) levels.emplace_back(name(level));
  }
  return levels;
}

}  // namespace lowrank
