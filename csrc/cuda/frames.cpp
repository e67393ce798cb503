#include "frames.h"

#include <algorithm>
#include <stdexcept>

#include "../core/loop/planner.h"
#include "frame.h"

namespace stepfuse::cuda {

namespace {

constexpr std::size_t kLineWords = 16;

struct Rows {
  int cond, uncond;
};

Rows rows_at(const Course& course, const SlotRows& slot, std::size_t step) {
  const Passes passes = passes_of(course.rows[step], course.conditioned);
  return {passes == Passes::Unconditional ? -1 : slot.cond, passes == Passes::Conditional ? -1 : slot.uncond};
}

void require_whole(const Course& course) {
  if (course.rows.empty()) throw std::invalid_argument("a trajectory's samples need at least one step each");
  if (!course.second.empty() && course.second.size() != course.rows.size())
    throw std::invalid_argument("a course has one second line for each row, or none");
  if (!course.levels.empty() && course.levels.size() != course.rows.size() + 1)
    throw std::invalid_argument("a known region needs " + std::to_string(course.rows.size() + 1) +
                                " levels, one for each step and one for the result, got " +
                                std::to_string(course.levels.size()));
}

StepNeeds needs_of(const Course& course) {
  StepNeeds needs;
  needs.threshold = course.adaptive.threshold_ratio > 0;
  needs.keep = !course.levels.empty();
  needs.second = !course.second.empty();
  for (const SecondLine& line : course.second) needs.noise |= line.adds_noise();
  for (const StepRow& row : course.rows) {
    const bool guided = passes_of(row, course.conditioned) == Passes::Both;
    needs.noise |= row.adds_noise();
    needs.guidance |= guided && course.adaptive.guidance.any();
    needs.renorm |= guided && course.adaptive.renorm.any();
  }
  return needs;
}

}  // namespace

FrameLayout::FrameLayout(int slots, bool second) : columns(second ? 2 * kLineColumns : kLineColumns) {
  const auto b = static_cast<std::size_t>(slots);
  words = 0;
  const auto part = [&](std::size_t of_a_slot) {
    const std::size_t begin = words;
    words += of_a_slot * b;
    return begin;
  };
  rows = part(static_cast<std::size_t>(columns));
  next_rows = part(kLineColumns);
  levels = part(2);
  row_cond = part(1);
  row_uncond = part(1);
  next_cond = part(1);
  next_uncond = part(1);
  step = part(1);
  known_row = part(1);
  guidance = part(4);
  ratio = part(1);
  largest = part(1);
  patches = part(4);
  words = (words + kLineWords - 1) / kLineWords * kLineWords;
}

std::array<std::pair<StepArgument, std::size_t>, 13> FrameLayout::parts() const {
  using A = StepArgument;
  return {{{A::rows, rows},
           {A::next_rows, next_rows},
           {A::levels, levels},
           {A::row_cond, row_cond},
           {A::row_uncond, row_uncond},
           {A::next_cond, next_cond},
           {A::next_uncond, next_uncond},
           {A::step, step},
           {A::known_row, known_row},
           {A::guidance, guidance},
           {A::ratio, ratio},
           {A::largest, largest},
           {A::patches, patches}}};
}

void StepNeeds::add(const StepNeeds& other) {
  noise |= other.noise;
  guidance |= other.guidance;
  threshold |= other.threshold;
  keep |= other.keep;
  second |= other.second;
  renorm |= other.renorm;
}

bool StepNeeds::operator==(const StepNeeds& other) const {
  return noise == other.noise && guidance == other.guidance && threshold == other.threshold && keep == other.keep &&
         second == other.second && renorm == other.renorm;
}

Frames make_frames(const std::vector<Course>& courses) {
  if (courses.empty()) throw std::invalid_argument("a trajectory needs at least one sample");
  Frames frames{static_cast<int>(courses.size()), 0, {}, {}, {}, 0, {}};
  int behind = frames.slots;
  for (std::size_t i = 0; i < courses.size(); ++i) {
    const Course& course = courses[i];
    require_whole(course);
    frames.steps = std::max(frames.steps, static_cast<int>(course.rows.size()));
    frames.needs.add(needs_of(course));
    bool unconditional = false;
    for (const StepRow& row : course.rows) {
      unconditional |= passes_of(row, course.conditioned) != Passes::Conditional;
    }
    for (std::size_t k = 0; k < course.rows.size(); ++k)
      frames.registers =
          std::max(frames.registers, registers_of(course.rows[k], course.second.empty() ? nullptr : &course.second[k]));
    const int own = static_cast<int>(i);
    frames.slot_rows.push_back(course.conditioned ? SlotRows{own, unconditional ? behind++ : -1} : SlotRows{-1, own});
  }

  const std::size_t words = FrameLayout(frames.slots, frames.needs.second).words;
  frames.words.resize(words * static_cast<std::size_t>(frames.steps));
  for (std::size_t step = 0; step < static_cast<std::size_t>(frames.steps); ++step) {
    Frame frame(frames.slots, frames.needs.second, frames.words.data() + step * words);
    int highest = -1;
    for (std::size_t i = 0; i < courses.size(); ++i) {
      const Course& course = courses[i];
      if (step >= course.rows.size()) continue;
      const int slot = static_cast<int>(i);
      const Rows now = rows_at(course, frames.slot_rows[i], step);
      frame.step(slot, course.rows[step], now.cond, now.uncond, static_cast<int>(step));
      if (!course.second.empty()) frame.second_line(slot, course.second[step]);
      frame.adapt(slot, course.adaptive);
      if (!course.levels.empty()) frame.keep(slot, slot, course.levels[step + 1]);
      highest = std::max({highest, now.cond, now.uncond});
      if (step + 1 == course.rows.size()) continue;
      const Rows next = rows_at(course, frames.slot_rows[i], step + 1);
      frame.next(slot, course.rows[step + 1], next.cond, next.uncond);
    }
    frames.forward_rows.push_back(highest + 1);
  }
  return frames;
}

}  // namespace stepfuse::cuda
