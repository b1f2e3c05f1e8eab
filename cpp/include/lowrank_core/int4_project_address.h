// int4_project_address: where the elements of an array, their codes and their grids stand: by lines along one dimension
// of an array, and as an operand of a product.
#pragma once

#include <cstdlib>

#include "lowrank_core/int4_project.h"

namespace lowrank::int4_project {

// Where a line begins: in the array, in its row-major order, in the packed bytes and among the groups.
struct Place {
  int64_t array, element, byte, group;
};

// Lines are numbered so that neighbours differ in the dimension of the array's smallest stride.
class Lines {
 public:
  int64_t count = 1, length;
  int64_t array_step, element_step, byte_step, group_step;  // from one element, byte or group of a line to the next

  Lines(const View& array, const Format& format) : length(array.shape[size_t(format.dim)]) {
    Place stride{1, 1, 1, 1};
    for (int i = array.rank - 1; i >= 0; --i) {
      const int64_t size = array.shape[size_t(i)];
      stride.array = array.stride[size_t(i)];
      if (i == format.dim) {
        step_ = stride;
        stride.byte *= format.bytes(length);
        stride.group *= format.groups(length);
      } else {
        insert({size, stride});
        count *= size;
        stride.byte *= size;
        stride.group *= size;
      }
      stride.element *= size;
    }
    array_step = step_.array;
    element_step = step_.element;
    byte_step = step_.byte;
    group_step = step_.group;
  }

  // Of element `i` of a line from `place` on, and of byte `i` of a group: within the array, its row-major order and the
  // packed bytes; and of a group.
  LRC_HD int64_t array_at(const Place& place, int64_t i) const { return place.array + i * array_step; }
  LRC_HD int64_t element_at(const Place& place, int64_t i) const { return place.element + i * element_step; }
  LRC_HD int64_t byte_at(const Place& place, int64_t i) const { return place.byte + i * byte_step; }
  LRC_HD int64_t group_at(const Place& place, int64_t group) const { return place.group + group * group_step; }

  LRC_HD Place at(int64_t line) const {
    Place place{0, 0, 0, 0};
    for (int i = 0; i < rank_; ++i) {
      const Dimension& d = others_[i];
      const int64_t index = line % d.size;
      line /= d.size;
      place.array += index * d.stride.array;
      place.element += index * d.stride.element;
      place.byte += index * d.stride.byte;
      place.group += index * d.stride.group;
    }
    return place;
  }

 private:
  struct Dimension {
    int64_t size;
    Place stride;
  };

  // Keeps the smallest stride first.
  void insert(const Dimension& d) {
    int i = rank_++;
    for (; i > 0 && std::abs(others_[i - 1].stride.array) > std::abs(d.stride.array); --i) {
      others_[i] = others_[i - 1];
    }
    others_[i] = d;
  }

  Dimension others_[View::kMaxRank]{};
  int rank_ = 0;
  Place step_{};
};

// Codes as an operand: element (i, j) is in byte (i / 2) * along + j * across and its grid in entry
// (i / group) * group_along + j * group_across of scale and base. One of along and across is 1.
struct PackedMatrix {
  const uint8_t* bytes;
  const float *scale, *base;
  int64_t rows, cols;  // of i and j
  int64_t along, across, group_along, group_across;
  int64_t group;
  bool nf4;

  LRC_HD const uint8_t* byte(int64_t i, int64_t j) const { return bytes + i / 2 * along + j * across; }
  LRC_HD int64_t grid_of(int64_t group_number, int64_t j) const {
    return group_number * group_along + j * group_across;
  }
  // By the number of its grid, grid_of(i / group, j).
  LRC_HD float element(int64_t i, int64_t j, int64_t grid_number) const {
    return decode({scale[grid_number], base[grid_number]}, number_of(code_of(*byte(i, j), i), nf4));
  }
};

}  // namespace lowrank::int4_project
