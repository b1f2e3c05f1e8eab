// check: the whole test framework. CHECK reports and counts; main returns finish().
#pragma once

#include <cstdio>

namespace lowrank::testing {

inline int failures = 0;
inline int checks = 0;

inline int finish() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace lowrank::testing

#define CHECK(condition)                                                        \
  do {                                                                          \
    ++lowrank::testing::checks;                                                 \
    if (!(condition)) {                                                         \
      ++lowrank::testing::failures;                                             \
      std::printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
    }                                                                           \
  } while (false)
