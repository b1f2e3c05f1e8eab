// int4_project_lines: an array as lines along one of its dimensions, together with the codes that belong to each line.
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

}  // namespace lowrank::int4_project
