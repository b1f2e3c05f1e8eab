// level: what the family asks of an instruction-set level: some rows through a transform, and what becomes of them.
#pragma once

#include "lowrank_core/dct_select.h"
#include "lowrank_core/isa.h"

namespace lowrank::dct_select {

// A transform of n numbers that the level files can read. A tile is [vectors][lanes], one row in each lane; the cosine
// bases see it as complex points, two vectors each.
template <class T>
struct Transform {
  Basis basis;
  int64_t n;
  int64_t vectors;              // of a tile, at least n
  const fft::Plan<T>* plan;     // of the cosine bases: n / 2 points, or n if n is odd
  const int32_t* points;        // [plan->n]: the plan's places
  const T* turns;               // [n / 2 + 1][4]: turn_of
  const int32_t* place_before;  // [n]: the vector where number i of a row has to stand; null: i
  const int32_t* place_after;   // [n]: the vector where coordinate k is found; null: k
};

// Rows [begin, end) of `in`, times `scale`, through the transform; then, where asked for, in this order: `residual`
// added and overwritten with the sum; sums of squares and of magnitudes per coordinate; chosen coordinates, times
// `scale_out`, to the same rows of `out`.
template <class T>
struct RowJob {
  const Transform<T>* transform;
  Matrix in;
  const int64_t* in_columns = nullptr;  // [in.cols]: which of the n numbers are given, the others are 0; null: all
  double scale = 1.0;
  Matrix residual{};                     // data null: none
  double* squares = nullptr;             // [n]
  double* magnitudes = nullptr;          // [n], not without squares
  Matrix out{};                          // data null: none
  const int64_t* out_columns = nullptr;  // [out.cols]; null: all
  double scale_out = 1.0;
  int64_t begin = 0, end = 0;
};

template <class T>
struct RowFunctions {
  void (*run)(const RowJob<T>& job);
  // Adds the sums of rows in the identity, those of each part of `each` rows in turn, to those that are there; the
  // residual, where there is one, is added and overwritten first. The rows of both run along memory, or the columns.
  void (*add_lines)(const RowJob<T>& job, int64_t each, bool along_rows);
};

struct Level {
  ByType<RowFunctions> rows;

  static const Level generic, avx2, avx512, avx512bf16;
};

template <class T>
void run_rows(const RowJob<T>& job) {
  at_level<Level>().rows.of<T>().run(job);
}

}  // namespace lowrank::dct_select
