// One function a topic, which binds it, and what they share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "../core/step/isa.h"
#include "../core/step/row.h"
#include "gil.h"

namespace stepfuse {

using FloatArray = py::array_t<float, py::array::c_style>;

void bind_errors(py::module_& m);  // before all functions that may throw one
void bind_step(py::module_& m);
void bind_noise(py::module_& m);
void bind_planner(py::module_& m);
void bind_stepper(py::module_& m);
void bind_events(py::module_& m);
void bind_request(py::module_& m);
void bind_server(py::module_& m);
void bind_replay(py::module_& m);
void bind_cuda(py::module_& m);
void bind_cuda_loop(py::module_& m);

inline FloatArray row_to_array(const StepRow& row) {
  FloatArray columns(kLineColumns);
  std::memcpy(columns.mutable_data(), &row, sizeof row);
  return columns;
}

// A table's lines from an array (S, 16) or (S, 32).
struct Lines {
  std::vector<StepRow> rows;
  std::vector<SecondLine> second;
};

inline bool one_or_two_lines(py::ssize_t columns) { return columns == kLineColumns || columns == 2 * kLineColumns; }

inline Lines lines_from(const FloatArray& rows) {
  if (rows.ndim() != 2 || !one_or_two_lines(rows.shape(1)))
    throw py::value_error("a table has shape (S, 16) or (S, 32)");
  Lines lines;
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
    lines.rows.push_back(line_from<StepRow>(rows.data(i, 0)));
    if (rows.shape(1) > kLineColumns) lines.second.push_back(line_from<SecondLine>(rows.data(i, kLineColumns)));
  }
  return lines;
}

inline Isa isa_named(const std::optional<std::string>& name) {
  if (!name) return best_isa();
  std::string known;
  for (const Isa isa : available_isas()) {
    if (*name == name_of(isa)) return isa;
    known += std::string(known.empty() ? "" : ", ") + name_of(isa);
  }
  throw py::value_error("isa must be one that this machine has (" + known + "), got '" + *name + "'");
}

}  // namespace stepfuse
