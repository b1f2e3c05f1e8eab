// lines: an array as lines along one of its dimensions, together with the codes that belong to each line.
#pragma once

#include <array>
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
        stride.byte *= format.groups(length) * format.group / 2;
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

  Place at(int64_t line) const {
    Place place{0, 0, 0, 0};
    for (int i = 0; i < rank_; ++i) {
      const Dimension& d = others_[size_t(i)];
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
    for (; i > 0 && std::abs(others_[size_t(i - 1)].stride.array) > std::abs(d.stride.array); --i) {
      others_[size_t(i)] = others_[size_t(i - 1)];
    }
    others_[size_t(i)] = d;
  }

  std::array<Dimension, View::kMaxRank> others_{};
  int rank_ = 0;
  Place step_{};
};

}  // namespace lowrank::int4_project
