#include "table.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "planner.h"

namespace stepfuse {

Table::Table(std::vector<StepRow> table_rows, float scale, const Adaptive& adapts, std::vector<SecondLine> second_lines)
    : rows(std::move(table_rows)),
      second(std::move(second_lines)),
      init_scale(scale),
      adaptive(adapts),
      registers(0),
      conditioned_passes(rows.size()) {
  if (!second.empty() && second.size() != rows.size())
    throw std::invalid_argument("a table has one second line for each row, or none");
  int passes = 0;
  for (int i = size(); i-- > 0;) {
    const auto at = static_cast<std::size_t>(i);
    registers = std::max(registers, registers_of(rows[at], second_line(i)));
    conditioned_passes[at] = passes += rows_of(passes_of(rows[at], true));
  }
}

}  // namespace stepfuse
