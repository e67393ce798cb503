// One compiled kernel of a step as a launch. Which arguments it takes, and in what order, is in the manifest that
// kernels/aot.py writes beside the cubins.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "module.h"
#include "step_arguments.h"

namespace stepfuse::cuda {

enum class ArgumentType : std::uint8_t { Pointer, Int32, Int64 };

struct KernelArgument {
  std::string name;  // of a StepArgument, or "null": a pointer of Triton's own to memory that the kernel does not use
  ArgumentType type;
  bool divisible_by_16;
};

// What a kernel's programs are numbered by.
enum class Grid : std::uint8_t {
  Tiles,  // (tiles of a sample, slots)
  Slots,  // (slots,): each reads a whole sample
};

struct KernelSignature {
  std::vector<KernelArgument> arguments;
  int block;  // elements a tile
  int num_warps;
  unsigned shared_bytes;
  Grid grid = Grid::Tiles;
};

// From Triton's name of it: "*fp32" and the like, "i32", "i64". Throws std::invalid_argument.
ArgumentType argument_type(const std::string& name);

class StepKernel {
 public:
  // Throws std::invalid_argument if an argument is not one of a step's.
  StepKernel(std::shared_ptr<const Module> module, const std::string& name, KernelSignature signature);

  const KernelSignature& signature() const { return signature_; }
  bool takes(StepArgument argument) const;
  // Over `slots` samples of `n` elements; of the arguments its own are picked. Throws std::invalid_argument if one has
  // no value, or one that does not fit its type, or is not divisible by 16 where the kernel was compiled for that.
  Launch launch(int slots, const StepArguments& arguments) const;

 private:
  // Where an argument's value is from, found once: launches look nothing up by name.
  struct Source {
    std::optional<StepArgument> argument;  // nothing: a null pointer
    ArgumentType type;
    bool divisible_by_16;
  };

  std::vector<std::uint64_t> pack(const StepArguments& arguments) const;

  std::shared_ptr<const Module> module_;
  CUfunction function_;
  KernelSignature signature_;
  std::vector<Source> sources_;  // in the kernel's order
};

}  // namespace stepfuse::cuda
