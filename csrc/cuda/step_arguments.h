// The arguments of the step's kernels: each is named here and nowhere else in C++, by the name that it has in kernels/.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace stepfuse::cuda {

// clang-format off
#define STEPFUSE_STEP_ARGUMENTS(ARGUMENT)                                                                              \
  /* (B, n) states, the new states, histories and previews */                                                          \
  ARGUMENT(x) ARGUMENT(out) ARGUMENT(h) ARGUMENT(h2) ARGUMENT(h3) ARGUMENT(x0)                                         \
  /* the network's rows */                                                                                             \
  ARGUMENT(prediction) ARGUMENT(next_input) ARGUMENT(next_t) ARGUMENT(next_t_int)                                      \
  /* a frame's parts (FrameLayout) */                                                                                  \
  ARGUMENT(rows) ARGUMENT(next_rows) ARGUMENT(row_cond) ARGUMENT(row_uncond) ARGUMENT(next_cond) ARGUMENT(next_uncond) \
  ARGUMENT(step) ARGUMENT(known_row) ARGUMENT(levels) ARGUMENT(guidance) ARGUMENT(ratio) ARGUMENT(largest)             \
  ARGUMENT(patches)                                                                                                    \
  /* of slots: keys of their noise, flags of what is not finite, known regions */                                      \
  ARGUMENT(seed) ARGUMENT(nonfinite) ARGUMENT(known)                                                                   \
  /* what adapts rows: sums of adapted guidance, counts of magnitudes, and the adapted rows */                          \
  ARGUMENT(sums) ARGUMENT(counts) ARGUMENT(adapted)                                                                    \
  /* lengths, and of which digit magnitudes are counted */                                                             \
  ARGUMENT(n) ARGUMENT(tiles) ARGUMENT(prediction_rows) ARGUMENT(next_input_rows) ARGUMENT(shift)                      \
  /* strides, in elements */                                                                                           \
  ARGUMENT(rows_stride) ARGUMENT(next_rows_stride) ARGUMENT(x_stride) ARGUMENT(prediction_stride)                      \
  ARGUMENT(out_stride) ARGUMENT(next_input_stride)
// clang-format on

enum class StepArgument : std::uint8_t {
#define STEPFUSE_MEMBER(name) name,
  STEPFUSE_STEP_ARGUMENTS(STEPFUSE_MEMBER)
#undef STEPFUSE_MEMBER
};

#define STEPFUSE_ONE(name) +1
constexpr std::size_t kStepArguments = 0 STEPFUSE_STEP_ARGUMENTS(STEPFUSE_ONE);
#undef STEPFUSE_ONE

const char* name_of(StepArgument argument);
std::optional<StepArgument> step_argument(const std::string& name);  // nothing if no kernel of a step takes such

// Values of some of them: addresses, and integers in two's complement.
class StepArguments {
 public:
  void set(StepArgument argument, std::uint64_t value) { values_[index(argument)] = value; }
  bool has(StepArgument argument) const { return values_[index(argument)].has_value(); }
  // Throws std::invalid_argument if it has none.
  std::uint64_t at(StepArgument argument) const;
  bool operator==(const StepArguments& other) const { return values_ == other.values_; }

 private:
  static std::size_t index(StepArgument argument) { return static_cast<std::size_t>(argument); }

  std::array<std::optional<std::uint64_t>, kStepArguments> values_{};
};

}  // namespace stepfuse::cuda
