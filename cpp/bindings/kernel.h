// kernel: how every function that computes is bound, so that none can forget what all of them need. Before the call,
// with the GIL: each array is memory that can be used, and none that is written shares memory with another or with
// itself; a refusal names the argument. Around it: the GIL released, the default floating-point environment, one
// instruction-set level, and an end to large workspaces.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "caster.h"
#include "lowrank_core/float_environment.h"
#include "lowrank_core/isa.h"
#include "lowrank_core/workspace.h"

namespace lowrank {

enum class Devices : uint8_t { kHost, kAny };  // whether a kernel takes arrays of a GPU

// The arrays among the arguments of one call, and what is wrong with them.
class Arguments {
 public:
  Arguments(const char* op, Devices devices) : op_(op), devices_(devices) {}

  void add(const char* name, const ReadArray& array) { add(name, array, false); }
  void add(const char* name, const WriteArray& array) { add(name, array, true); }
  template <class T>
  void add(const char* name, const std::optional<T>& value) {
    if (value) add(name, *value);
  }
  template <class T>
  void add(const char* name, const std::vector<T>& list) {
    if constexpr (holds_arrays<T>) {
      const size_t depth = place_.depth++;
      for (size_t i = 0; i < list.size(); ++i) {
        place_.number[depth] = i;
        add(name, list[i]);
      }
      --place_.depth;
    }
  }
  template <class T>
  void add(const char*, const T&) {}  // no array

  // Throws ArrayError for arrays of different devices, and for those that share memory of which one is written.
  void check_devices() const;
  void check_sharing();

 private:
  template <class T>
  static constexpr bool holds_arrays = std::is_class_v<T> && !std::is_same_v<T, std::string>;

  struct Place {  // in a list, or in a list of lists
    std::array<size_t, 2> number{};
    size_t depth = 0;
  };
  struct Entry {
    const View* view;
    bool written;
    const char* name;
    Place place;
    std::string text() const;
  };

  void add(const char* name, const Array& array, bool written);
  template <class E>
  [[noreturn]] void refuse(const Entry& entry, const std::string& rule) const;

  const char* op_;
  const Devices devices_;
  Place place_;
  std::vector<Entry> entries_;
};

// Binds `function` as `op`; `extra`: its arguments by name, all of them, and its docstring.
template <Devices kDevices = Devices::kHost, class R, class... A, class... Extra>
void kernel(pybind11::module_& module, const char* op, R (*function)(A...), const Extra&... extra) {
  std::vector<const char*> names;
  const auto collect = [&]<class E>(const E& given) {
    if constexpr (std::is_base_of_v<pybind11::arg, E>) names.push_back(given.name);
  };
  (collect(extra), ...);
  const auto call = [op, function, names](A... arguments) -> R {
    Arguments checked(op, kDevices);
    size_t i = 0;
    (checked.add(names[i++], arguments), ...);
    checked.check_devices();
    checked.check_sharing();
    const pybind11::gil_scoped_release release;
    const FloatEnvironment environment;
    const LevelScope level(isa());
    const WorkspaceScope workspace;
    return function(arguments...);
  };
  if (names.size() != sizeof...(A)) pybind11::pybind11_fail(std::string(op) + ": every argument needs a name");
  module.def(op, call, extra...);
}

}  // namespace lowrank
