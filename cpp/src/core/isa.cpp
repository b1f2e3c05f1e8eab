#include "lowrank_core/isa.h"

#include <atomic>
#include <cstdlib>

#include "lowrank_core/checks.h"

namespace lowrank {
namespace {

constexpr Isa kLevels[] = {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

Isa detect() {
#if defined(LRC_HAVE_X86_LEVELS)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("x86-64-v3")) return Isa::kGeneric;
  if (!__builtin_cpu_supports("x86-64-v4")) return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return Isa::kAvx512;
  return Isa::kAvx512Bf16;
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
