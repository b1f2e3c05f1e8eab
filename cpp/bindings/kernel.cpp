#include "kernel.h"

#include <algorithm>

#include "lowrank_core/overlap.h"

namespace lowrank {

std::string Arguments::Entry::text() const {
  std::string found = std::string("`") + name;
  for (size_t i = 0; i < place.depth; ++i) found.append("[").append(std::to_string(place.number[i])).append("]");
  return found + "`";
}

template <class E>
void Arguments::refuse(const Entry& entry, const std::string& rule) const {
  throw E(std::string(op_) + ": " + entry.text() + " " + rule);
}

void Arguments::add(const char* name, const Array& array, bool written) {
  const Entry entry{&array.view, written, name, place_};
  if (!array.refusal.empty()) refuse<ArrayError>(entry, array.refusal);
  if (array.view.on_cuda && devices_ == Devices::kHost) refuse<ArrayError>(entry, kNotOnHost);
  if (array.view.size() > 0) entries_.push_back(entry);
}

void Arguments::check_devices() const {
  for (const Entry& entry : entries_) {
    const Entry& first = entries_.front();
    if (entry.view->on_cuda != first.view->on_cuda || entry.view->device != first.view->device)
      refuse<ArrayError>(entry, "must be on the device of " + first.text() + ", got another one; move it there");
  }
}

void Arguments::check_sharing() {
  struct Placed {
    Extent extent;
    const Entry* entry;
  };
  std::vector<Placed> placed;
  bool any = false;
  for (const Entry& entry : entries_) {
    any = any || entry.written;
    if (entry.written && overlaps_itself(*entry.view))
      refuse<SharingError>(entry,
                           "must not overlap itself in memory, got strides that give two elements one place; clone it");
    placed.push_back({extent(*entry.view), &entry});
  }
  if (!any) return;
  std::sort(placed.begin(), placed.end(),
            [](const Placed& a, const Placed& b) { return a.extent.begin < b.extent.begin; });
  for (size_t i = 0; i < placed.size(); ++i) {
    for (size_t j = i + 1; j < placed.size() && placed[j].extent.begin < placed[i].extent.end; ++j) {
      const Entry *one = placed[i].entry, *other = placed[j].entry;
      if (!(one->written || other->written) || one->view->on_cuda != other->view->on_cuda) continue;
      if (!overlap(*one->view, *other->view)) continue;
      if (!one->written || (other->written && other > one)) std::swap(one, other);  // what is written, the later one
      refuse<SharingError>(
          *one, "must not share memory with " + other->text() + ", got overlapping arrays; clone one of them");
    }
  }
}

}  // namespace lowrank
