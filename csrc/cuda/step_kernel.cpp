#include "step_kernel.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace stepfuse::cuda {

namespace {

constexpr int kWarp = 32;
constexpr int kMaxSlots = (1 << 16) - 1;  // of the grid's second dimension

bool fits(std::int64_t value) {
  return value >= std::numeric_limits<std::int32_t>::min() && value <= std::numeric_limits<std::int32_t>::max();
}

}  // namespace

bool KernelSignature::takes(const std::string& name) const {
  return std::any_of(arguments.begin(), arguments.end(), [&](const Argument& a) { return a.name == name; });
}

ArgumentType argument_type(const std::string& name) {
  if (!name.empty() && name[0] == '*') return ArgumentType::Pointer;
  if (name == "i32") return ArgumentType::Int32;
  if (name == "i64") return ArgumentType::Int64;
  throw std::invalid_argument("an argument's type must be a pointer, i32 or i64, got '" + name + "'");
}

std::vector<std::uint64_t> pack(const KernelSignature& signature, const Values& values) {
  std::vector<std::uint64_t> packed;
  for (const auto& [name, type, divisible_by_16] : signature.arguments) {
    if (name == "null") {
      packed.push_back(0);
      continue;
    }
    const auto found = values.find(name);
    if (found == values.end()) throw std::invalid_argument("the kernel takes " + name + ", which has no value");
    const std::uint64_t value = found->second;
    const auto integer = static_cast<std::int64_t>(value);
    if (type == ArgumentType::Int32 && !fits(integer))
      throw std::invalid_argument(name + " must fit 32 bits, got " + std::to_string(integer));
    if (divisible_by_16 && value % 16 != 0)
      throw std::invalid_argument(name + " must be a multiple of 16 for this kernel, got " + std::to_string(integer));
    packed.push_back(value);
  }
  for (const auto& [name, value] : values)
    if (!signature.takes(name)) throw std::invalid_argument("the kernel takes no " + name);
  return packed;
}

StepKernel::StepKernel(std::shared_ptr<const Module> module, const std::string& name, KernelSignature signature)
    : module_(std::move(module)),
      function_(module_->function(name, signature.shared_bytes)),
      signature_(std::move(signature)) {
  if (signature_.block < 1 || signature_.num_warps < 1)
    throw std::invalid_argument("block and num_warps must be at least 1");
}

Launch StepKernel::launch(int slots, const Values& values) const {
  std::vector<std::uint64_t> packed = pack(signature_, values);
  const auto n = static_cast<std::int64_t>(values.at("n"));
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

Launch StepKernel::launch_of(int slots, const Values& values) const {
  Values own;
  for (const Argument& argument : signature_.arguments) {
    const auto found = values.find(argument.name);
    if (found != values.end()) own.insert(*found);
  }
  return launch(slots, own);
}

}  // namespace stepfuse::cuda
