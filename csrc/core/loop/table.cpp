#include "table.h"

#include <utility>

#include "planner.h"

namespace stepfuse {

Table::Table(std::vector<StepRow> table_rows, float scale, const Adaptive& adapts)
    : rows(std::move(table_rows)), init_scale(scale), adaptive(adapts), conditioned_passes(rows.size()) {
  uses_history = false;
  int passes = 0;
  for (std::size_t i = rows.size(); i-- > 0;) {
    uses_history = uses_history || rows[i].reads_history() || rows[i].keeps_history();
    conditioned_passes[i] = passes += rows_of(passes_of(rows[i], true));
  }
}

}  // namespace stepfuse
