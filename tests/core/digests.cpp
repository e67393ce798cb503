// The bits that the core computes, as a digest a topic: what every compiler and every processor must print alike.
//
//   digests
//
// Inputs come from integers alone, so they are the same bits anywhere. All instruction sets of a machine have to agree
// before one digest is printed for them. digests.txt has what is expected; test_step.py and test_noise.py compare the
// same code with numpy, diffusers and the paper's values.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "../../csrc/core/step/adapt.h"
#include "../../csrc/core/step/dtype.h"
#include "../../csrc/core/step/fused_step.h"
#include "../../csrc/core/step/known_region.h"
#include "../../csrc/core/step/noise.h"
#include "basics.h"

namespace {

using namespace stepfuse;

constexpr std::int64_t kElements = 1003;  // no multiple of any vector's width

// FNV-1a.
class Digest {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (std::size_t i = 0; i < values.size() * sizeof(T); ++i) value_ = (value_ ^ bytes[i]) * 0x100000001B3ull;
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xCBF29CE484222325ull;
};

// SplitMix64, and floats of 24 bits: exact in any arithmetic.
class Numbers {
 public:
  explicit Numbers(std::uint64_t seed) : state_(seed) {}
  float next(float size = 1.0f) {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return size * (static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-23f - 1.0f);
  }
  template <class T>
  std::vector<T> array() {
    std::vector<T> values(static_cast<std::size_t>(kElements));
    for (T& value : values) value = narrow<T>(next(3.0f));
    return values;
  }
  template <class Line>
  Line line() {
    float columns[kLineColumns];
    for (float& column : columns) column = next();
    return line_from<Line>(columns);
  }
  StepRow row() {
    StepRow row = line<StepRow>();
    row.lo = -1.5f, row.hi = 1.5f;
    return row;
  }

 private:
  std::uint64_t state_;
};

void print(const char* topic, std::uint64_t digest) {
  std::printf("%-24s %016llx\n", topic, static_cast<unsigned long long>(digest));
}

// Prints what `digest_on` gives on each instruction set that this machine has.
template <class DigestOn>
void print_on_all(const char* topic, DigestOn digest_on) {
  const std::uint64_t portable = digest_on(Isa::Portable);
  for (const Isa isa : available_isas()) require(digest_on(isa) == portable, name_of(isa));
  print(topic, portable);
}

std::uint64_t noise(Isa isa) {
  Digest digest;
  for (const std::uint64_t seed : {0ull, 7ull, 0xFFFFFFFFFFFFFFFFull})
    for (const NoiseStream stream : {NoiseStream::InitialState, NoiseStream::Step}) {
      std::vector<float> out(40003);
      fill_normal(seed, 11, stream, 8, static_cast<std::int64_t>(out.size()), out.data(), isa);
      digest.add(out);
    }
  return digest.value();
}

// A step of one line or of two, with and without guidance, history, noise and the rows of the next forward.
template <class T>
std::uint64_t steps(Isa isa) {
  Digest digest;
  for (unsigned features = 0; features < 16; ++features) {
    Numbers numbers(features);
    const bool guided = features & 1, kept = features & 2, noisy = features & 4, wide = features & 8;
    const StepRow row = numbers.row();
    const SecondLine second = numbers.line<SecondLine>();
    auto x = numbers.array<T>(), eps = numbers.array<T>(), uncond = numbers.array<T>(), z = numbers.array<T>(),
         h = numbers.array<T>(), h2 = numbers.array<T>(), h3 = numbers.array<T>();
    std::vector<T> x0(x.size()), cond_row(x.size()), uncond_row(x.size());
    StepSpan<T> span{kElements, x.data(), eps.data(), guided ? uncond.data() : nullptr, nullptr, nullptr, x.data()};
    if (noisy) span.z = z.data();
    if (kept || wide) span.h = h.data();
    if (wide) span.second = &second, span.h2 = h2.data(), span.h3 = h3.data();
    span.x0 = x0.data(), span.next_cond = cond_row.data(), span.next_uncond = uncond_row.data();
    span.next_scale = 0.75f;
    require(fused_step(row, span, isa), "a step is not finite", features);
    for (const auto* values : {&x, &h, &h2, &h3, &x0, &cond_row, &uncond_row}) digest.add(*values);
  }
  return digest.value();
}

// Rows as guidance by sums and dynamic thresholding write them.
std::uint64_t adapted() {
  Digest digest;
  for (const Blend blend : {Blend::Plain, Blend::Projected, Blend::ProjectedClean, Blend::OptimizedScale})
    for (const float ratio : {0.0f, 0.9f}) {
      Numbers numbers(static_cast<std::uint64_t>(blend));
      StepRow row = numbers.row();
      SecondLine second = numbers.line<SecondLine>();
      Adaptive adaptive;
      adaptive.guidance = {0.7f, blend, 0.5f, 20.0f};
      adaptive.threshold_ratio = ratio;
      const auto x = numbers.array<float>(), eps = numbers.array<float>(), uncond = numbers.array<float>();
      std::vector<float> scratch(x.size());
      adapt(row, &second, adaptive, kElements, x.data(), eps.data(), uncond.data(), scratch.data());
      std::vector<float> columns(2 * kLineColumns);
      std::memcpy(columns.data(), &row, sizeof row);
      std::memcpy(columns.data() + kLineColumns, &second, sizeof second);
      digest.add(columns);
    }
  return digest.value();
}

std::uint64_t known_regions() {
  Numbers numbers(5);
  auto image = numbers.array<float>(), mask = numbers.array<float>(), x = numbers.array<float>(),
       start = numbers.array<float>(), x0 = numbers.array<float>();
  for (float& value : mask) value = std::fabs(value) / 3.0f;
  const KnownRegion known{image.data(), mask.data(), {{0.6f, 0.8f}, {0.9f, 0.3f}}};
  Digest digest;
  std::vector<float> begun = start;
  start_from(known, kElements, begun.data());
  StepSpan<float> span{};
  span.n = kElements, span.out = x.data(), span.x0 = x0.data();
  keep_known(known, 0, start.data(), span);
  for (const auto* values : {&begun, &x, &x0}) digest.add(*values);
  return digest.value();
}

}  // namespace

int main() {
  print_on_all("noise", noise);
  print_on_all("step float32", steps<float>);
  print_on_all("step float16", steps<Half>);
  print_on_all("step bfloat16", steps<BFloat16>);
  print("adapted rows", adapted());
  print("known regions", known_regions());
}
