// rotation: plane rotations, and the one-sided Jacobi iteration that is made of them.
#pragma once

#include <math.h>

#include <cstdint>

#include "lowrank_core/checks.h"

namespace lowrank {

// A plane rotation of rows i and i + 1: (x, y) <- (c x - s y, s x + c y).
struct Rotation {
  int64_t i;
  double c, s;
};

// Whether two columns with the inner product `dot` are orthogonal to the cosine `tol`, from their squared lengths.
LRC_HD bool are_orthogonal(double dot, double first2, double second2, double tol) {
  return !(::fabs(dot) > tol * ::sqrt(first2) * ::sqrt(second2));
}

// The rotation that makes them orthogonal; of its two angles the smaller one. Its `i` has no meaning.
LRC_HD Rotation jacobi_rotation(double dot, double first2, double second2) {
  const double zeta = (second2 - first2) / (2.0 * dot);
  const double t = ::copysign(1.0, zeta) / (::fabs(zeta) + ::sqrt(1.0 + zeta * zeta));
  const double c = 1.0 / ::sqrt(1.0 + t * t);
  return {0, c, c * t};
}

// Pair number `p` of round `round` of a round-robin tournament over an even number of players: i < j.
struct Opponents {
  int64_t i, j;
};
LRC_HD Opponents opponents(int64_t p, int64_t round, int64_t players) {
  const int64_t circle = players - 1;
  const int64_t one = p == 0 ? players - 1 : (round + p) % circle;
  const int64_t other = (round + circle - p) % circle;
  return one < other ? Opponents{one, other} : Opponents{other, one};
}

}  // namespace lowrank
