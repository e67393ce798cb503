#include "step_kernel.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace stepfuse::cuda {

namespace {

constexpr int kWarp = 32;
constexpr int kMaxSlots = (1 << 16) - 1;  // of the grid's second dimension

bool fits_32_bits(std::int64_t value) {
  return value >= std::numeric_limits<std::int32_t>::min() && value <= std::numeric_limits<std::int32_t>::max();
}

}  // namespace

ArgumentType argument_type(const std::string& name) {
  if (!name.empty() && name[0] == '*') return ArgumentType::Pointer;
  if (name == "i32") return ArgumentType::Int32;
  if (name == "i64") return ArgumentType::Int64;
  throw std::invalid_argument("an argument's type must be a pointer, i32 or i64, got '" + name + "'");
}

StepKernel::StepKernel(std::shared_ptr<const Module> module, const std::string& name, KernelSignature signature)
    : module_(std::move(module)),
      function_(module_->function(name, signature.shared_bytes)),
      signature_(std::move(signature)) {
  if (signature_.block < 1 || signature_.num_warps < 1)
    throw std::invalid_argument("block and num_warps must be at least 1");
  for (const KernelArgument& one : signature_.arguments) {
    const std::optional<StepArgument> argument = step_argument(one.name);
    if (!argument && one.name != "null")
      throw std::invalid_argument("a kernel's arguments must be those of a step, " + name + " takes '" + one.name +
                                  "': build the kernels of this version");
    sources_.push_back({argument, one.type, one.divisible_by_16});
  }
}

bool StepKernel::takes(StepArgument argument) const {
  return std::any_of(sources_.begin(), sources_.end(), [&](const Source& one) { return one.argument == argument; });
}

std::vector<std::uint64_t> StepKernel::pack(const StepArguments& arguments) const {
  std::vector<std::uint64_t> packed;
  packed.reserve(sources_.size());
  for (const auto& [argument, type, divisible_by_16] : sources_) {
    if (!argument) {
      packed.push_back(0);
      continue;
    }
    const std::uint64_t value = arguments.at(*argument);
    const auto integer = static_cast<std::int64_t>(value);
    if (type == ArgumentType::Int32 && !fits_32_bits(integer))
      throw std::invalid_argument(std::string(name_of(*argument)) + " must fit 32 bits, got " +
                                  std::to_string(integer));
    if (divisible_by_16 && value % 16 != 0)
      throw std::invalid_argument(std::string(name_of(*argument)) + " must be a multiple of 16 for this kernel, got " +
                                  std::to_string(integer));
    packed.push_back(value);
  }
  return packed;
}

Launch StepKernel::launch(int slots, const StepArguments& arguments) const {
  std::vector<std::uint64_t> packed = pack(arguments);
  const auto n = static_cast<std::int64_t>(arguments.at(StepArgument::n));
  if (slots < 1 || slots > kMaxSlots || n < 1)
    throw std::invalid_argument("a launch takes 1 to " + std::to_string(kMaxSlots) +
                                " slots of at least 1 element, got " + std::to_string(slots) + " of " +
                                std::to_string(n));
  const auto tiles = static_cast<unsigned>((n + signature_.block - 1) / signature_.block);
  const auto batch = static_cast<unsigned>(slots);
  const bool tiled = signature_.grid == Grid::Tiles;
  return {function_,
          {tiled ? tiles : batch, tiled ? batch : 1, 1},
          {static_cast<unsigned>(kWarp * signature_.num_warps), 1, 1},
          signature_.shared_bytes,
          std::move(packed)};
}

}  // namespace stepfuse::cuda
