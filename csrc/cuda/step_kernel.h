// The fused step, and what runs beside it, as a launch: which arguments a compiled kernel takes, and in what order, is
// told by the manifest that kernels/aot.py writes beside the cubins.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "module.h"

namespace stepfuse::cuda {

enum class ArgumentType : std::uint8_t { Pointer, Int32, Int64 };

struct Argument {
  std::string name;  // "null": a pointer of Triton's own to memory that the kernel does not use
  ArgumentType type;
  bool divisible_by_16;
};

// What a kernel's programs are numbered by.
enum class Grid : std::uint8_t {
  Tiles,  // (tiles of a sample, slots)
  Slots,  // (slots,): each looks at a whole sample
};

struct KernelSignature {
  std::vector<Argument> arguments;
  int block;  // elements a tile
  int num_warps;
  unsigned shared_bytes;
  Grid grid = Grid::Tiles;

  bool takes(const std::string& name) const;
};

// From Triton's name of it: "*fp32" and the like, "i32", "i64". Throws std::invalid_argument.
ArgumentType argument_type(const std::string& name);

// Arguments by name: pointers and integers, these in two's complement.
using Values = std::map<std::string, std::uint64_t>;

// In the kernel's order. Throws std::invalid_argument if one has no value, a value has no argument, does not fit its
// type, or is not divisible by 16 where the kernel was compiled for that.
std::vector<std::uint64_t> pack(const KernelSignature& signature, const Values& values);

class StepKernel {
 public:
  StepKernel(std::shared_ptr<const Module> module, const std::string& name, KernelSignature signature);

  const KernelSignature& signature() const { return signature_; }
  // Over `slots` samples of values["n"] elements.
  Launch launch(int slots, const Values& values) const;
  // The same, of values that others take too: its own are picked.
  Launch launch_of(int slots, const Values& values) const;

 private:
  std::shared_ptr<const Module> module_;
  CUfunction function_;
  KernelSignature signature_;
};

}  // namespace stepfuse::cuda
