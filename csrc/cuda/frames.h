// Everything that the steps of a static batch take from its tables, written before it starts: a frame a step, which the
// fused step reads where it lies. Pure: no driver, no device.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "../core/step/adapt.h"
#include "../core/step/known_region.h"
#include "../core/step/row.h"
#include "step_arguments.h"

namespace stepfuse::cuda {

// One sample's steps, and whether it has conditioning.
struct Course {
  std::vector<StepRow> rows;
  bool conditioned;
  Adaptive adaptive{};
  std::vector<Level> levels{};       // as in KnownRegion, if the sample has one; else empty
  std::vector<SecondLine> second{};  // as in Table
};

// What a step needs beside the plain fused step, for any of its slots.
struct StepNeeds {
  bool noise = false;
  bool guidance = false;
  bool threshold = false;
  bool keep = false;
  bool second = false;  // a slot's step has a second line
  bool renorm = false;  // a slot's guidance keeps the norm of patches

  void add(const StepNeeds& other);
  bool operator==(const StepNeeds& other) const;
};

// Which rows of every forward are a slot's, from the first step to the last, so that conditioning is written once.
struct SlotRows {
  int cond;    // -1: the slot has no conditioning
  int uncond;  // -1: no step of it computes an unconditional pass
};

// Words of a frame for B slots, and where in it each part begins.
struct FrameLayout {
  // With `second` rows have 32 columns: of a slot whose step has one line the others are 0.
  FrameLayout(int slots, bool second);

  int columns;                                               // of rows
  std::size_t rows;                                          // (B, columns) float32
  std::size_t next_rows;                                     // (B, 16) float32
  std::size_t levels;                                        // (B, 2) float32, of the known region after this step
  std::size_t row_cond, row_uncond, next_cond, next_uncond;  // (B,) int32, -1: none
  std::size_t step;                                          // (B,) int32
  std::size_t known_row;                                     // (B,) int32, -1: no known region
  std::size_t guidance;                                      // (B, 4) float32: phi, Blend, eta, norm threshold
  std::size_t ratio, largest;                                // (B,) float32, dynamic threshold; ratio 0: off
  std::size_t patches;                                       // (B, 4) int32, Renorm
  std::size_t words;                                         // a multiple of a cache line's

  // Each part as the kernels' argument that it is.
  std::array<std::pair<StepArgument, std::size_t>, 13> parts() const;
};

struct Frames {
  int slots;
  int steps;                         // of the longest course; a slot that has ended stays unchanged
  std::vector<SlotRows> slot_rows;   // (B,)
  std::vector<int> forward_rows;     // (steps,) rows, from 0 on, of the forward that a step needs
  StepNeeds needs;                   // of all steps together
  int registers;                     // of the history, that the rows read or keep: 0 to 3
  std::vector<std::uint32_t> words;  // (steps, FrameLayout::words)
};

// Slot i has row i; those that need an unconditional pass as well have another row after all of these. The known region
// of slot i is in row i too. Throws std::invalid_argument if there is no slot, or a course has no step or another
// number of levels.
Frames make_frames(const std::vector<Course>& courses);

}  // namespace stepfuse::cuda
