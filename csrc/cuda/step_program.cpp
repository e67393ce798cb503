#include "step_program.h"

#include <algorithm>
#include <stdexcept>

namespace stepfuse::cuda {

namespace {

constexpr std::int64_t kSums = 9;      // of each tile, float64
constexpr std::int64_t kCounts = 264;  // of each tile, and of a slot, int32
constexpr int kDigitBits = 8, kFirstShift = 24;
constexpr char kGuidance[] = "adapted guidance", kThreshold[] = "dynamic_threshold";
constexpr char kPlain[] = "steps without noise", kNoise[] = "steps with noise";
constexpr char kSecond[] = "rows with a second line: build the kernels anew";

// The kernel meant for so many slots, or else the one for the most.
const StepKernel& chosen(const std::map<int, KernelPtr>& kernels, int slots, const char* what) {
  if (kernels.empty()) throw std::invalid_argument(std::string("there is no kernel for ") + what);
  const auto found = kernels.lower_bound(slots);
  return found == kernels.end() ? *kernels.rbegin()->second : *found->second;
}

const StepKernel& required(const KernelPtr& kernel, const char* what) {
  if (!kernel) throw std::invalid_argument(std::string("there is no kernel for ") + what + ": build the kernels anew");
  return *kernel;
}

std::int64_t tiles_of(const StepKernel& kernel, std::int64_t n) {
  const int block = kernel.signature().block;
  return (n + block - 1) / block;
}

}  // namespace

StepProgram::StepProgram(Kernels kernels) : kernels_(std::move(kernels)) {
  if (kernels_.plain.empty() && kernels_.noise.empty() && kernels_.second.empty())
    throw std::invalid_argument("a step needs a kernel, without noise or with");
}

std::size_t StepProgram::scratch_bytes(int slots, std::int64_t n, const StepNeeds& needs) const {
  const auto tiles = [&](const KernelPtr& kernel, const char* what) { return tiles_of(required(kernel, what), n); };
  std::size_t sums = 0, counts = 0;
  if (needs.guidance)
    sums = static_cast<std::size_t>(slots * tiles(kernels_.guidance_sums, kGuidance) * kSums) * sizeof(double);
  if (needs.threshold)
    counts = static_cast<std::size_t>(slots * (tiles(kernels_.magnitude_counts, kThreshold) + 1) * kCounts) *
             sizeof(std::int32_t);
  return std::max(sums, counts);
}

std::vector<Launch> StepProgram::launches(int slots, const StepNeeds& needs, StepArguments arguments,
                                          CUdeviceptr frame) const {
  using A = StepArgument;
  const FrameLayout layout(slots, needs.second);
  for (const auto& [part, word] : layout.parts()) arguments.set(part, frame + word * sizeof(std::uint32_t));
  if (!arguments.has(A::adapted)) arguments.set(A::adapted, arguments.at(A::rows));
  arguments.set(A::rows_stride, static_cast<std::uint64_t>(layout.columns));
  arguments.set(A::next_rows_stride, kLineColumns);
  const auto n = static_cast<std::int64_t>(arguments.at(A::n));
  std::vector<Launch> found;
  if (needs.renorm) found.push_back(required(kernels_.renormed_predictions, "cfg_renorm").launch(slots, arguments));
  if (needs.guidance) {
    const StepKernel& sums = required(kernels_.guidance_sums, kGuidance);
    arguments.set(A::tiles, static_cast<std::uint64_t>(tiles_of(sums, n)));
    found.push_back(sums.launch(slots, arguments));
    found.push_back(required(kernels_.guided_rows, kGuidance).launch(slots, arguments));
    arguments.set(A::rows, arguments.at(A::adapted));
  }
  if (needs.threshold) {
    const StepKernel& counts = required(kernels_.magnitude_counts, kThreshold);
    const StepKernel& rows = required(kernels_.thresholded_rows, kThreshold);
    arguments.set(A::tiles, static_cast<std::uint64_t>(tiles_of(counts, n)));
    for (int shift = kFirstShift; shift >= 0; shift -= kDigitBits) {
      arguments.set(A::shift, static_cast<std::uint64_t>(shift));
      found.push_back(counts.launch(slots, arguments));
      found.push_back(rows.launch(slots, arguments));
    }
    arguments.set(A::rows, arguments.at(A::adapted));
  }
  const StepKernel& step = needs.second  ? chosen(kernels_.second, slots, kSecond)
                           : needs.noise ? chosen(kernels_.noise, slots, kNoise)
                                         : chosen(kernels_.plain, slots, kPlain);
  found.push_back(step.launch(slots, arguments));
  if (needs.keep) found.push_back(required(kernels_.keep_known, "masks").launch(slots, arguments));
  return found;
}

}  // namespace stepfuse::cuda
