// The parts of the submodule "cuda", in the order in which they need each other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "../cuda/context.h"
#include "bindings.h"

namespace stepfuse {

using NoGil = py::call_guard<ReleasedGil>;

void bind_cuda_device(py::module_& m);      // contexts, streams, events, memory
void bind_cuda_graphs(py::module_& m);      // modules, captures, graphs, budgets of captured forwards
void bind_cuda_step(py::module_& m);        // kernels of a step, their arguments, the slots' memory
void bind_cuda_trajectory(py::module_& m);  // frames, plans, trajectories

template <class Handle>
std::uintptr_t address_of(Handle handle) {
  return reinterpret_cast<std::uintptr_t>(handle);
}

template <class T>
std::unique_ptr<T> borrowed(const cuda::ContextPtr& context, std::uintptr_t address) {
  return std::make_unique<T>(T::borrow(context, reinterpret_cast<decltype(std::declval<T>().get())>(address)));
}

// Refuses None among the values of a map.
template <class Map>
const Map& whole(const Map& given, const char* what) {
  for (const auto& [key, value] : given)
    if (!value) throw py::type_error(std::string(what) + " must be given for each number of rows or slots, got None");
  return given;
}

}  // namespace stepfuse
