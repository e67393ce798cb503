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

bool watched(const Sample& sample) { return sample.request.watched || sample.request.gate; }

}  // namespace

DeviceStepper::DeviceStepper(const Stream& stream, ModelSpec spec, DeviceRows rows, StepProgram program)
    : context_(stream.context()),
      stream_(Stream::borrow(context_, stream.get())),
      spec_(std::move(spec)),
      state_bytes_(static_cast<std::size_t>(spec_.elements) * sizeof(float)),
      rows_(std::move(rows)),
      program_(std::move(program)),
      row_contents_(spec_.max_rows),
      memory_(stream_, spec_, SlotMemory::Use::Loop),
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
  return SlotMemory::bytes(slots, elements) + frame_bytes(slots, false);
}

// What is enqueued reads pinned memory and writes slots.
DeviceStepper::~DeviceStepper() {
  context_->quietly([this](const Driver& driver) { return driver.cuStreamSynchronize.result(stream_.get()); });
}

// Rolls back a partly enqueued iteration: its rows are filled again, and no sample counts as stepped.
void DeviceStepper::roll_back() {
  row_contents_.invalidate();
  flight().stepped.clear();
  downloads_.clear();
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
  const std::int32_t finite = 0;
  if (request.keeps()) memory_.reserve_known();
  std::vector<float> noise(request.keeps() ? n : 0);
  first_state(request, spec_.elements, request.keeps() ? noise.data() : nullptr);
  upload(memory_.x()->get() + at * state_bytes_, request.x, state_bytes_);
  upload(memory_.seed()->get() + at * sizeof request.seed, &request.seed, sizeof request.seed);
  upload(memory_.nonfinite()->get() + at * sizeof finite, &finite, sizeof finite);
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
  Frame frame(slots_.end(), false, flight().pinned.take(frame_bytes(slots_.end(), false)));
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
  arguments.set(StepArgument::nonfinite, 0);
  for (const Launch& one : prepare(frame, {}, arguments)) launch(stream_, one);
}

void DeviceStepper::throttle() { await(flight(1)); }

void DeviceStepper::step(const Iteration& iteration, const Iteration& next) {
  const Unwinding unwinding{*this};
  Flight& now = flight();
  const bool second = std::any_of(iteration.samples.begin(), iteration.samples.end(), [](const Sample* sample) {
    return sample->live() && sample->failed_step < 0 && sample->second_line();
  });
  Frame frame(slots_.end(), second, now.pinned.take(frame_bytes(slots_.end(), second)));
  StepNeeds needs;
  bool previews = false;
  // An iteration that throws here is tried again. So all that may fail comes before the launch, and what fails after it
  // is rethrown by `synchronize`.
  for (std::size_t i = 0; i < iteration.samples.size(); ++i) {
    Sample& sample = *iteration.samples[i];
    if (!sample.live() || sample.failed_step >= 0) continue;
    const PlanEntry& entry = iteration.plan.entries[i];
    const Request& request = sample.request;
    const Adaptive& adaptive = request.table->adaptive;
    frame.step(sample.slot, sample.row(), entry.row_cond, entry.row_uncond, sample.step);
    if (const SecondLine* line = sample.second_line()) frame.second_line(sample.slot, *line);
    if (const PlanEntry* to = next.entry_of(sample)) {
      claim(sample, sample.step + 1, *to);
      frame.next(sample.slot, sample.row(1), to->row_cond, to->row_uncond);
    }
    if (adaptive.any()) frame.adapt(sample.slot, adaptive);
    if (request.keeps())
      frame.keep(sample.slot, sample.slot, request.known_region->levels[static_cast<std::size_t>(sample.step) + 1]);
    needs.add({request.table->adds_noise(sample.step), adaptive.guidance.any(), adaptive.threshold_ratio > 0,
               request.keeps(), second, adaptive.renorm.any()});
    previews |= request.x0 != nullptr;
    now.stepped.push_back({sample.slot, sample.standing.arrival, sample.step});
    if (sample.steps_left() > 1 && !watched(sample)) continue;
    const std::size_t offset = static_cast<std::size_t>(sample.slot) * state_bytes_;
    downloads_.push_back({memory_.x(), offset, now.pinned.take(state_bytes_), request.x});
    if (request.x0) downloads_.push_back({memory_.x0(), offset, now.pinned.take(state_bytes_), request.x0});
  }
  const std::size_t flag_bytes = static_cast<std::size_t>(frame.slots()) * sizeof(std::int32_t);
  void* flags = now.pinned.take(flag_bytes);
  now.nonfinite = static_cast<const std::int32_t*>(flags);
  const std::vector<Launch> launches =
      now.stepped.empty() ? std::vector<Launch>{} : prepare(frame, needs, memory_.arguments(rows_.forward, previews));
  staged_ = false;
  try {
    for (const Launch& one : launches) launch(stream_, one);
    if (!launches.empty()) memory_.nonfinite()->download(stream_, flags, flag_bytes);
    for (const Download& one : downloads_) one.from->download(stream_, one.pinned, state_bytes_, one.offset);
    end_flight();
  } catch (...) {
    roll_back();
    broken_ = std::current_exception();
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
  reserve_frame(false);
}

void DeviceStepper::reserve_frame(bool second) {
  cuda::reserve(frame_, stream_, frame_bytes(memory_.capacity(), second));
}

// Copies the frame to the device, and returns the launches of its step.
std::vector<Launch> DeviceStepper::prepare(const Frame& frame, const StepNeeds& needs, StepArguments arguments) {
  reserve_frame(needs.second);
  frame_->upload(stream_, frame.data(), frame.bytes());
  if (needs.guidance) {
    memory_.reserve_sums(program_.sums_bytes(memory_.capacity(), spec_.elements));
    arguments.set(StepArgument::sums, memory_.sums()->get());
  }
  return program_.launches(frame.slots(), needs, arguments, frame_->get());
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
  for (const auto& [slot, arrival, step] : stepped) {
    const auto at = static_cast<std::size_t>(slot);
    Sample* sample = at < samples_.size() ? samples_[at] : nullptr;
    const bool same = sample && sample->standing.arrival == arrival && sample->failed_step < 0;
    if (same && flight.nonfinite[slot] != 0) sample->failed_step = step;
  }
  flight.pinned.clear();
}

}  // namespace stepfuse::cuda
