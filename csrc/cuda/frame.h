// One step's frame, written for the slots that take part in it.
#pragma once

#include <algorithm>
#include <cstring>

#include "../core/loop/planner.h"
#include "../core/step/adapt.h"
#include "../core/step/known_region.h"
#include "frames.h"

namespace stepfuse::cuda {

class Frame {
 public:
  // In memory of FrameLayout::words words. Initially no slot takes part.
  Frame(int slots, bool second, void* memory)
      : slots_(slots), layout_(slots, second), words_(static_cast<std::uint32_t*>(memory)) {
    std::fill(words_, words_ + layout_.words, 0u);
    for (const std::size_t map :
         {layout_.row_cond, layout_.row_uncond, layout_.next_cond, layout_.next_uncond, layout_.known_row})
      std::fill_n(words_ + map, slots, kNone);
  }

  // The slot does a step, with the predictions of these rows.
  void step(int slot, const StepRow& row, int row_cond, int row_uncond, int step) {
    put_line(layout_.rows, layout_.columns * slot, row);
    word(layout_.row_cond, slot) = static_cast<std::uint32_t>(row_cond);
    word(layout_.row_uncond, slot) = static_cast<std::uint32_t>(row_uncond);
    word(layout_.step, slot) = static_cast<std::uint32_t>(step);
  }
  // Of a frame with second lines.
  void second_line(int slot, const SecondLine& second) {
    put_line(layout_.rows, layout_.columns * slot + kLineColumns, second);
  }
  // Its new state goes to these rows of the next forward, for the step `row`.
  void next(int slot, const StepRow& row, int next_cond, int next_uncond) {
    put_line(layout_.next_rows, kLineColumns * slot, row);
    word(layout_.next_cond, slot) = static_cast<std::uint32_t>(next_cond);
    word(layout_.next_uncond, slot) = static_cast<std::uint32_t>(next_uncond);
  }
  void adapt(int slot, const Adaptive& adaptive) {
    const Guidance& guidance = adaptive.guidance;
    put(layout_.guidance, 4 * slot, guidance.rescale);
    put(layout_.guidance, 4 * slot + 1, static_cast<float>(guidance.blend));
    put(layout_.guidance, 4 * slot + 2, guidance.eta);
    put(layout_.guidance, 4 * slot + 3, guidance.norm_threshold);
    put(layout_.ratio, slot, adaptive.threshold_ratio);
    put(layout_.largest, slot, adaptive.largest_threshold);
    static_assert(sizeof(Renorm) == 4 * sizeof(std::uint32_t), "the kernel reads four words");
    std::memcpy(&word(layout_.patches, 4 * slot), &adaptive.renorm, sizeof adaptive.renorm);
  }
  // Its known region, in row `known_row` of the known regions, is put back at this level.
  void keep(int slot, int known_row, const Level& level) {
    word(layout_.known_row, slot) = static_cast<std::uint32_t>(known_row);
    std::memcpy(&word(layout_.levels, 2 * slot), &level, sizeof level);
  }

  int slots() const { return slots_; }
  const void* data() const { return words_; }
  std::size_t bytes() const { return layout_.words * sizeof(std::uint32_t); }

 private:
  static constexpr std::uint32_t kNone = static_cast<std::uint32_t>(-1);

  std::uint32_t& word(std::size_t part, int index) { return words_[part + static_cast<std::size_t>(index)]; }
  void put(std::size_t part, int slot, float value) { std::memcpy(&word(part, slot), &value, sizeof value); }
  template <class Line>
  void put_line(std::size_t part, int index, const Line& line) {
    std::memcpy(&word(part, index), &line, sizeof line);
  }

  int slots_;
  FrameLayout layout_;
  std::uint32_t* words_;
};

}  // namespace stepfuse::cuda
