#include "device_stepper.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#include "../core/step/dtype.h"

namespace stepfuse::cuda {

namespace {

// A step that leaves the state as it is, and only fills the next forward's rows.
StepRow identity_row() {
  StepRow row{};
  row.g = 1;
  row.lo = -std::numeric_limits<float>::infinity();
  row.hi = std::numeric_limits<float>::infinity();
  row.q_x = 1;
  return row;
}

std::size_t stored_bytes(Stored stored, std::size_t host_bytes) {
  return stored == Stored::AsIs ? host_bytes : host_bytes / 2;
}

template <class T>
void narrow_all(const void* from, void* to, std::size_t bytes) {
  const auto* source = static_cast<const float*>(from);
  auto* target = static_cast<T*>(to);
  for (std::size_t i = 0; i < bytes / sizeof(float); ++i) target[i] = narrow<T>(source[i]);
}

void store(Stored stored, const void* from, void* to, std::size_t host_bytes) {
  if (stored == Stored::Float32AsFloat16) return narrow_all<Half>(from, to, host_bytes);
  if (stored == Stored::Float32AsBFloat16) return narrow_all<BFloat16>(from, to, host_bytes);
  std::memcpy(to, from, host_bytes);
}

std::size_t frame_bytes(int slots, bool second) { return FrameLayout(slots, second).words * sizeof(std::uint32_t); }

Frames make_empty(int slots, int steps, int forward_rows, const StepNeeds& needs) {
  const auto count = static_cast<std::size_t>(steps);
  Frames frames{slots, steps, {}, std::vector<int>(count, forward_rows), needs, 0, {}};
  frames.words.resize(count * FrameLayout(slots, needs.second).words);
  return frames;
}

bool steps(const Sample& sample) { return sample.live() && sample.failed_step < 0; }

bool watched(const Sample& sample) { return sample.request.watched || sample.request.gate; }

}  // namespace

DeviceStepper::DeviceStepper(const Stream& stream, ModelSpec spec, DeviceRows rows, StepProgram program,
                             std::map<int, std::shared_ptr<const Graph>> forwards)
    : context_(stream.context()),
      stream_(stream.shared()),
      spec_(std::move(spec)),
      state_bytes_(static_cast<std::size_t>(spec_.elements) * sizeof(float)),
      rows_(std::move(rows)),
      program_(std::move(program)),
      row_contents_(spec_.max_rows),
      memory_(stream_, spec_, SlotMemory::Use::Loop),
      copies_(context_),
      pieces_(stream_, program_, std::move(forwards)),
      zeros_(context_, state_bytes_),
      flights_{Flight(context_), Flight(context_), Flight(context_)} {
  if (rows_.cond.size() != spec_.cond_bytes.size())
    throw std::invalid_argument("a network's rows need memory for each conditioning input");
  void* zeros = flight().pinned.take(state_bytes_);
  std::memset(zeros, 0, state_bytes_);
  zeros_.upload(stream_, zeros, state_bytes_);
  reserve(spec_.max_rows);
  stream_.synchronize();
}

std::size_t DeviceStepper::bytes(int slots, std::int64_t elements) {
  return SlotMemory::bytes(slots, elements) + (1 + kFlights) * frame_bytes(slots, false);
}

// What is enqueued reads pinned memory and writes slots.
DeviceStepper::~DeviceStepper() {
  const Stream::Turn turn(stream_);
  for (const Stream* one : {&copies_, &stream_})
    context_->quietly([one](const Driver& driver) { return driver.cuStreamSynchronize.result(one->get()); });
}

// Rolls back a partly enqueued iteration: its rows are filled again, and no sample counts as stepped.
void DeviceStepper::roll_back() {
  row_contents_.invalidate();
  flight().stepped.clear();
  downloads_.clear();
  behind_ = true;
}

void DeviceStepper::begin(Sample& sample) {
  const int slot = slots_.take();
  try {
    reserve(slots_.end());
    samples_.resize(std::max(samples_.size(), static_cast<std::size_t>(slot) + 1));
    fill(sample, slot);
  } catch (...) {
    slots_.give_back(slot);
    throw;
  }
  samples_[static_cast<std::size_t>(slot)] = &sample;
  sample.slot = slot;
}

void DeviceStepper::fill(Sample& sample, int slot) {
  const Request& request = sample.request;
  const auto n = static_cast<std::size_t>(spec_.elements), at = static_cast<std::size_t>(slot);
  if (request.keeps()) memory_.reserve_known();
  std::vector<float> noise(request.keeps() ? n : 0);
  first_state(request, spec_.elements, request.keeps() ? noise.data() : nullptr);
  upload(memory_.x()->get() + at * state_bytes_, request.x, state_bytes_);
  upload(memory_.seed()->get() + at * sizeof request.seed, &request.seed, sizeof request.seed);
  memory_.reserve_registers(request.table->registers);
  for (int i = 0; i < request.table->registers; ++i)
    upload(memory_.h(i)->get() + at * state_bytes_, std::vector<float>(n).data(), state_bytes_);
  if (!request.keeps()) return;
  CUdeviceptr part = memory_.known()->get() + at * 3 * state_bytes_;
  for (const float* values :
       {request.known_region->image, request.known_region->mask, static_cast<const float*>(noise.data())}) {
    upload(part, values, state_bytes_);
    part += state_bytes_;
  }
}

void DeviceStepper::stage(const Iteration& iteration, int rows) {
  const Unwinding unwinding{*this};
  if (std::exchange(staged_, true)) {  // the iteration before has failed, but a part of it may be enqueued
    end_flight();
    await(flight());
  }
  forward_rows_ = rows;
  Frames frames = make_empty(slots_.end(), 1, rows, {});
  Frame frame(frames.slots, false, frames.words.data());
  bool any = false;
  for (std::size_t i = 0; i < iteration.samples.size(); ++i) {
    const Sample& sample = *iteration.samples[i];
    const PlanEntry to = claim(sample, sample.step, iteration.plan.entries[i]);
    if (to.row_cond < 0 && to.row_uncond < 0) continue;
    any = true;
    // While the gate was closed its caller may have changed the state.
    if (sample.request.gate && sample.step > 0)
      upload(memory_.x()->get() + static_cast<std::size_t>(sample.slot) * state_bytes_, sample.request.x, state_bytes_);
    frame.step(sample.slot, identity_row(), 0, -1, 0);
    frame.next(sample.slot, sample.row(), to.row_cond, to.row_uncond);
  }
  for (int row = iteration.plan.rows; row < rows; ++row)
    if (row_contents_.release(row)) blank(row);
  if (!any) return;
  StepArguments arguments = memory_.arguments(rows_.forward, false);
  arguments.set(StepArgument::prediction, zeros_.get());
  arguments.set(StepArgument::prediction_rows, 1);
  const void* pinned = pinned_copy(frames);
  staging_->upload(stream_, pinned, frames.words.size() * sizeof(std::uint32_t));
  for (const Launch& one : launches(frames, arguments, *staging_)) launch(stream_, one);
}

// A piece is built here, since no lock is held and the device is busy with what is enqueued.
void DeviceStepper::throttle() {
  if (const auto& wanted = pieces_.wanted()) pieces_.build(memory_.arguments(rows_.forward, wanted->previews));
  await(flight(1));
}

int DeviceStepper::steps_at_once(const Iteration& iteration) {
  const auto goes_on = [](const Sample* one) {  // captured forwards have no adapters
    return one->steps_alike(Pieces::kSteps) == Pieces::kSteps && one->request.adapters == 0;
  };
  if (!std::all_of(iteration.samples.begin(), iteration.samples.end(), goes_on)) return 1;
  piece_key_ = key_of(iteration, Pieces::kSteps);
  piece_ = pieces_.find(piece_key_, memory_.arguments(rows_.forward, piece_key_.previews));
  return piece_ ? Pieces::kSteps : 1;
}

// What so many steps of the iteration's samples take. Of several steps at once the slots are a power of two, so that
// few pieces serve all.
Pieces::Key DeviceStepper::key_of(const Iteration& iteration, int steps_of_each) const {
  Pieces::Key key{slots_.end(), forward_rows_, {}, false};
  if (steps_of_each > 1) {
    for (key.slots = 1; key.slots < slots_.end();) key.slots *= 2;
    key.slots = std::min(key.slots, memory_.capacity());
  }
  for (const Sample* sample : iteration.samples) {
    if (!steps(*sample)) continue;
    const Table& table = *sample->request.table;
    key.previews |= sample->request.x0 != nullptr;
    for (int step = sample->step; step < sample->step + steps_of_each; ++step)
      key.needs.add({table.adds_noise(step), table.adaptive.guidance.any(), table.adaptive.threshold_ratio > 0,
                     sample->request.keeps(), table.second_line(step) != nullptr, table.adaptive.renorm.any()});
  }
  return key;
}

// What the step `ahead` of the next one takes of a sample, and the rows that it fills.
void DeviceStepper::put(Frame& frame, const Sample& sample, int ahead, const PlanEntry& entry, const PlanEntry* to) {
  const Request& request = sample.request;
  const Adaptive& adaptive = request.table->adaptive;
  const int step = sample.step + ahead;
  frame.step(sample.slot, sample.row(ahead), entry.row_cond, entry.row_uncond, step);
  if (const SecondLine* line = sample.second_line(ahead)) frame.second_line(sample.slot, *line);
  if (to) frame.next(sample.slot, sample.row(ahead + 1), to->row_cond, to->row_uncond);
  if (adaptive.any()) frame.adapt(sample.slot, adaptive);
  if (request.keeps())
    frame.keep(sample.slot, sample.slot, request.known_region->levels[static_cast<std::size_t>(step) + 1]);
  flight().stepped.push_back({sample.slot, sample.standing.arrival, step, ahead * frame.slots() + sample.slot});
}

Frames DeviceStepper::frames_of(const Iteration& iteration, const Iteration& next, const Pieces::Key& key) {
  Frames frames = make_empty(key.slots, iteration.steps, key.rows, key.needs);
  const std::size_t words = frames.words.size() / static_cast<std::size_t>(frames.steps);
  for (int ahead = 0; ahead < frames.steps; ++ahead) {
    Frame frame(key.slots, key.needs.second, frames.words.data() + static_cast<std::size_t>(ahead) * words);
    for (std::size_t i = 0; i < iteration.samples.size(); ++i) {
      const Sample& sample = *iteration.samples[i];
      if (!steps(sample)) continue;
      const PlanEntry& entry = iteration.plan.entries[i];
      put(frame, sample, ahead, entry, ahead + 1 < frames.steps ? &entry : next.entry_of(sample));
      frames.registers = std::max(frames.registers, sample.request.table->registers);
    }
  }
  return frames;
}

// Behind the iteration's forwards, since conditioning is copied to rows that change hands.
void DeviceStepper::claim_next(const Iteration& iteration, const Iteration& next) {
  for (const Sample* sample : iteration.samples)
    if (const PlanEntry* to = steps(*sample) ? next.entry_of(*sample) : nullptr)
      claim(*sample, sample->step + iteration.steps, *to);
}

void DeviceStepper::step(const Iteration& iteration, const Iteration& next) {
  const Unwinding unwinding{*this};
  Flight& now = flight();
  Trajectory* piece = iteration.steps > 1 ? piece_ : nullptr;
  // An iteration that throws here is tried again. So all that may fail comes before the launch, and what fails after it
  // is rethrown by `synchronize`.
  const Pieces::Key key = piece ? piece_key_ : key_of(iteration, 1);
  const Frames frames = frames_of(iteration, next, key);
  for (const Sample* sample : iteration.samples) {
    const Request& request = sample->request;
    if (!steps(*sample) || (sample->steps_left() > iteration.steps && !watched(*sample))) continue;
    const std::size_t offset = static_cast<std::size_t>(sample->slot) * state_bytes_;
    downloads_.push_back({memory_.x(), offset, now.pinned.take(state_bytes_), request.x});
    if (request.x0) downloads_.push_back({memory_.x0(), offset, now.pinned.take(state_bytes_), request.x0});
  }
  std::int32_t* flags = take_flags(frames);
  std::vector<Launch> of_step;
  if (piece) {
    piece->load(stream_, frames, now.pinned.take(piece->plan().host_bytes));
  } else if (!now.stepped.empty()) {
    claim_next(iteration, next);
    StepArguments arguments = memory_.arguments(rows_.forward, key.previews);
    arguments.set(StepArgument::nonfinite, reinterpret_cast<CUdeviceptr>(flags));
    copy(frames);
    of_step = launches(frames, arguments, *now.frame);
  }
  staged_ = false;
  try {
    if (piece) {
      piece->launch(stream_);
      claim_next(iteration, next);
      piece->download_flags(stream_, flags);
    }
    for (const Launch& one : of_step) launch(stream_, one);
    for (const Download& one : downloads_) one.from->download(stream_, one.pinned, state_bytes_, one.offset);
    copy_results(iteration);
    end_flight();
  } catch (...) {
    roll_back();
    broken_ = std::current_exception();
  }
}

// Where they are to stay on the device.
void DeviceStepper::copy_results(const Iteration& iteration) {
  for (const Sample* sample : iteration.samples) {
    const CUdeviceptr to = sample->request.device_copy;
    if (to == 0 || !steps(*sample) || sample->steps_left() > iteration.steps) continue;
    const std::size_t offset = static_cast<std::size_t>(sample->slot) * state_bytes_;
    DeviceBuffer::borrow(context_, to, state_bytes_).copy(stream_, *memory_.x(), state_bytes_, offset);
  }
}

void DeviceStepper::synchronize() {
  // Taken first: where this throws, the requests fail, and the memory that they would be copied to is freed.
  const std::vector<Download> downloads = std::exchange(downloads_, {});
  if (broken_) std::rethrow_exception(std::exchange(broken_, nullptr));
  for (std::size_t behind = 1; behind < kFlights; ++behind) await(flight(behind));
  for (const Download& one : downloads) std::memcpy(one.to, one.pinned, state_bytes_);
}

void DeviceStepper::end(const Sample& sample) {
  samples_[static_cast<std::size_t>(sample.slot)] = nullptr;
  slots_.give_back(sample.slot);
}

// By way of pinned memory: `from` may be freed when this returns.
void DeviceStepper::upload(CUdeviceptr to, const void* from, std::size_t host_bytes, Stored stored) {
  const std::size_t bytes = stored_bytes(stored, host_bytes);
  void* pinned = flight().pinned.take(bytes);
  store(stored, from, pinned, host_bytes);
  const Stream::Turn turn(stream_);
  const Context::Scope scope(*context_);
  context_->driver().cuMemcpyHtoDAsync(to, pinned, bytes, stream_.get());
}

void DeviceStepper::upload_cond(int row, const std::vector<const void*>& values) {
  for (std::size_t input = 0; input < values.size(); ++input) {
    const DeviceRows::Cond& cond = rows_.cond[input];
    const std::size_t bytes = spec_.cond_bytes[input];
    upload(cond.address + static_cast<std::size_t>(row) * stored_bytes(cond.stored, bytes), values[input], bytes,
           cond.stored);
  }
}

// Zeros: the row is of no sample now, and what it held may be of one that the network refuses.
void DeviceStepper::blank(int row) {
  const auto put = [&](CUdeviceptr rows, std::size_t bytes) {
    upload(rows + static_cast<std::size_t>(row) * bytes, std::vector<std::byte>(bytes).data(), bytes);
  };
  put(rows_.forward.sample, rows_.sample_bytes);
  put(rows_.forward.timestep, spec_.timestep == TimestepType::Int64 ? sizeof(std::int64_t) : sizeof(float));
  for (std::size_t input = 0; input < rows_.cond.size(); ++input)
    put(rows_.cond[input].address, stored_bytes(rows_.cond[input].stored, spec_.cond_bytes[input]));
}

// The rows are the sample's from now on, for its step `step`, and hold its conditioning. Returns those of them that do
// not hold its state yet.
PlanEntry DeviceStepper::claim(const Sample& sample, int step, const PlanEntry& rows) {
  PlanEntry to = rows;
  for (int* row : {&to.row_cond, &to.row_uncond}) {
    if (*row < 0) continue;
    const bool conditional = row == &to.row_cond;
    const RowContents::Valid valid = row_contents_.claim(*row, sample, step, conditional);
    if (!valid.conditioning) upload_cond(*row, conditional ? sample.request.cond : sample.request.null_cond);
    if (valid.state) *row = -1;
  }
  return to;
}

void DeviceStepper::reserve(int slots) {
  memory_.reserve(slots);
  const std::size_t bytes = frame_bytes(memory_.capacity(), false);
  cuda::reserve(staging_, stream_, bytes);
  for (Flight& one : flights_) cuda::reserve(one.frame, stream_, bytes);
}

void* DeviceStepper::pinned_copy(const Frames& frames) {
  const std::size_t bytes = frames.words.size() * sizeof(std::uint32_t);
  return std::memcpy(flight().pinned.take(bytes), frames.words.data(), bytes);
}

// Copies the step's frame to the device, beside the forward. The flight's memory for it is free: the host has waited
// for the step that read it, unless an iteration was rolled back.
void DeviceStepper::copy(const Frames& frames) {
  Flight& now = flight();
  const void* pinned = pinned_copy(frames);
  if (std::exchange(behind_, false)) {
    stream_.record(now.copied);
    copies_.wait(now.copied);
  }
  cuda::reserve(now.frame, copies_, frame_bytes(memory_.capacity(), frames.needs.second));
  now.frame->upload(copies_, pinned, frames.words.size() * sizeof(std::uint32_t));
  copies_.record(now.copied);
  stream_.wait(now.copied);
}

// What a step launches, which reads the frame that was copied there.
std::vector<Launch> DeviceStepper::launches(const Frames& frames, StepArguments arguments, const DeviceBuffer& frame) {
  if (const std::size_t scratch = program_.scratch_bytes(memory_.capacity(), spec_.elements, frames.needs)) {
    memory_.reserve_scratch(scratch);
    for (const StepArgument one : {StepArgument::sums, StepArgument::counts})
      arguments.set(one, memory_.scratch()->get());
  }
  return program_.launches(frames.slots, frames.needs, arguments, frame.get());
}

// Flags of the current flight, one a step and slot, of what is not finite. They are pinned memory, which the device
// addresses as the host does: a step writes there itself, and only where it has to.
std::int32_t* DeviceStepper::take_flags(const Frames& frames) {
  const auto count = static_cast<std::size_t>(frames.steps) * static_cast<std::size_t>(frames.slots);
  auto* flags = static_cast<std::int32_t*>(flight().pinned.take(count * sizeof(std::int32_t)));
  std::fill_n(flags, count, 0);
  flight().nonfinite = flags;
  return flags;
}

// All of the current flight is enqueued.
void DeviceStepper::end_flight() {
  stream_.record(flight().passed);
  flight().enqueued = true;
  current_ = (current_ + 1) % kFlights;
}

// Waits until the device has passed a flight, and reads which states are not finite.
void DeviceStepper::await(Flight& flight) {
  if (!std::exchange(flight.enqueued, false)) return;
  const std::vector<Stepped> stepped = std::exchange(flight.stepped, {});
  flight.passed.synchronize();
  for (const auto& [slot, arrival, step, flag] : stepped) {
    const auto at = static_cast<std::size_t>(slot);
    Sample* sample = at < samples_.size() ? samples_[at] : nullptr;
    const bool same = sample && sample->standing.arrival == arrival && sample->failed_step < 0;
    if (same && flight.nonfinite[flag] != 0) sample->failed_step = step;
  }
  flight.pinned.clear();
}

}  // namespace stepfuse::cuda
