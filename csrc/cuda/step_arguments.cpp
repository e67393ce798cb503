#include "step_arguments.h"

#include <stdexcept>

namespace stepfuse::cuda {

namespace {

constexpr std::array<const char*, kStepArguments> kNames{
#define STEPFUSE_NAME(name) #name,
    STEPFUSE_STEP_ARGUMENTS(STEPFUSE_NAME)
#undef STEPFUSE_NAME
};

}  // namespace

const char* name_of(StepArgument argument) { return kNames[static_cast<std::size_t>(argument)]; }

std::optional<StepArgument> step_argument(const std::string& name) {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i]) return static_cast<StepArgument>(i);
  return std::nullopt;
}

std::uint64_t StepArguments::at(StepArgument argument) const {
  const std::optional<std::uint64_t>& value = values_[index(argument)];
  if (!value)
    throw std::invalid_argument(std::string("the kernel takes ") + name_of(argument) + ", which has no value");
  return *value;
}

}  // namespace stepfuse::cuda
