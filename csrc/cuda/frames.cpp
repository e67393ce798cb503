#include "frames.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "../core/planner.h"

namespace stepfuse::cuda {

namespace {

constexpr std::size_t kLineWords = 16;

struct Rows {
  int cond, uncond;
};

// Of one step; both -1 behind the last.
Rows rows_at(const Course& course, const SlotRows& slot, std::size_t step) {
  if (step >= course.rows.size()) return {-1, -1};
  const Passes passes = passes_of(course.rows[step], course.conditioned);
  return {passes == Passes::Unconditional ? -1 : slot.cond, passes == Passes::Conditional ? -1 : slot.uncond};
}

}  // namespace

FrameLayout::FrameLayout(int slots) {
  const auto b = static_cast<std::size_t>(slots);
  words = 0;
  const auto part = [&](std::size_t of_a_slot) {
    const std::size_t begin = words;
    words += of_a_slot * b;
    return begin;
  };
  rows = part(kStepColumns);
  next_rows = part(kStepColumns);
  levels = part(2);
  row_cond = part(1);
  row_uncond = part(1);
  next_cond = part(1);
  next_uncond = part(1);
  step = part(1);
  known_row = part(1);
  phi = part(1);
  ratio = part(1);
  largest = part(1);
  words = (words + kLineWords - 1) / kLineWords * kLineWords;
}

std::map<std::string, std::size_t> FrameLayout::parts() const {
  return {{"rows", rows},
          {"next_rows", next_rows},
          {"levels", levels},
          {"row_cond", row_cond},
          {"row_uncond", row_uncond},
          {"next_cond", next_cond},
          {"next_uncond", next_uncond},
          {"step", step},
          {"known_row", known_row},
          {"phi", phi},
          {"ratio", ratio},
          {"largest", largest}};
}

Frames make_frames(const std::vector<Course>& courses) {
  if (courses.empty()) throw std::invalid_argument("a trajectory needs at least one sample");
  Frames frames{static_cast<int>(courses.size()), 0, {}, {}, false, false, {}};
  int behind = frames.slots;
  for (std::size_t i = 0; i < courses.size(); ++i) {
    const Course& course = courses[i];
    if (course.rows.empty()) throw std::invalid_argument("a trajectory's samples need at least one step each");
    frames.steps = std::max(frames.steps, static_cast<int>(course.rows.size()));
    bool unconditional = false;
    for (const StepRow& row : course.rows) {
      unconditional |= passes_of(row, course.conditioned) != Passes::Conditional;
      frames.adds_noise |= row.adds_noise();
      frames.uses_history |= row.reads_history() || row.keeps_history();
    }
    const int own = static_cast<int>(i);
    frames.slot_rows.push_back(course.conditioned ? SlotRows{own, unconditional ? behind++ : -1} : SlotRows{-1, own});
  }

  const FrameLayout layout(frames.slots);
  frames.words.resize(layout.words * static_cast<std::size_t>(frames.steps));
  for (std::size_t step = 0; step < static_cast<std::size_t>(frames.steps); ++step) {
    std::uint32_t* frame = frames.words.data() + step * layout.words;
    int highest = -1;
    for (std::size_t i = 0; i < courses.size(); ++i) {
      const Course& course = courses[i];
      const auto put_row = [&](std::size_t part, std::size_t at) {
        if (at < course.rows.size()) std::memcpy(frame + part + i * kStepColumns, &course.rows[at], sizeof(StepRow));
      };
      const Rows now = rows_at(course, frames.slot_rows[i], step);
      const Rows next = rows_at(course, frames.slot_rows[i], step + 1);
      put_row(layout.rows, step);
      put_row(layout.next_rows, step + 1);
      frame[layout.row_cond + i] = static_cast<std::uint32_t>(now.cond);
      frame[layout.row_uncond + i] = static_cast<std::uint32_t>(now.uncond);
      frame[layout.next_cond + i] = static_cast<std::uint32_t>(next.cond);
      frame[layout.next_uncond + i] = static_cast<std::uint32_t>(next.uncond);
      frame[layout.step + i] = static_cast<std::uint32_t>(step);
      frame[layout.known_row + i] = static_cast<std::uint32_t>(-1);
      highest = std::max({highest, now.cond, now.uncond});
    }
    frames.forward_rows.push_back(highest + 1);
  }
  return frames;
}

}  // namespace stepfuse::cuda
