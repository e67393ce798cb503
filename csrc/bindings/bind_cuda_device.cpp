#include <memory>
#include <optional>

#include "../cuda/memory.h"
#include "bind_cuda.h"

namespace stepfuse {

namespace {

using namespace cuda;

// A context for libraries that work in the calling thread's, such as TensorRT.
class Current {
 public:
  explicit Current(std::shared_ptr<Context> context) : context_(std::move(context)) {}
  void enter() { scope_.emplace(*context_); }
  void exit() { scope_.reset(); }

 private:
  std::shared_ptr<Context> context_;
  std::optional<Context::Scope> scope_;
};

// A thread that waits for its turn lets go of Python's lock: the one that has the turn may be in Python.
class TurnsInPython : public Turns {
  void wait(std::recursive_mutex& mutex) override {
    if (!PyGILState_Check()) return mutex.lock();
    const ReleasedGil released;
    mutex.lock();
  }
};

// A turn as a `with` block.
class HeldTurn {
 public:
  explicit HeldTurn(const Stream& stream) : stream_(stream.shared()) {}
  void enter() { turn_.emplace(stream_); }
  void exit() { turn_.reset(); }

 private:
  Stream stream_;
  std::optional<Stream::Turn> turn_;
};

}  // namespace

void bind_cuda_device(py::module_& m) {
  py::class_<Context, std::shared_ptr<Context>>(m, "Context")
      .def_property_readonly("device", &Context::device)
      .def_property_readonly("name", &Context::name)
      .def_property_readonly("compute_capability", &Context::compute_capability)
      .def_property_readonly("multiprocessors", &Context::multiprocessors)
      .def_property_readonly("cache_bytes", &Context::cache_bytes)
      .def_property_readonly("driver_version", [](const Context& c) { return version_text(c.driver().version()); })
      .def_property_readonly("has_while_nodes", [](const Context& c) { return c.driver().has(kWhileNodes); })
      .def_property_readonly("memory", [](const Context& c) {
        const MemoryInfo info = c.memory();
        return std::pair(info.free, info.total);
      });
  py::class_<Current>(m, "Current")
      .def(py::init<std::shared_ptr<Context>>(), py::arg("context").none(false))
      .def("__enter__", &Current::enter)
      .def("__exit__", [](Current& self, const py::args&) { self.exit(); });
  m.def(
      "open", [](int device, const std::string& driver) { return Context::open(Driver::load(driver), device); },
      py::arg("device") = 0, py::arg("driver") = "libcuda.so.1", NoGil(), "The primary context of a GPU.");

  py::class_<Event>(m, "Event")
      .def(py::init([](std::shared_ptr<Context> context, bool timing) { return Event(std::move(context), timing); }),
           py::arg("context").none(false), py::arg("timing") = false)
      .def("passed", &Event::passed)
      .def("synchronize", &Event::synchronize, NoGil())
      .def("seconds_since", &Event::seconds_since, py::arg("start"));
  py::class_<Stream>(m, "Stream")
      .def(py::init([](std::shared_ptr<Context> context) {
             return Stream(std::move(context), std::make_shared<TurnsInPython>());
           }),
           py::arg("context").none(false))
      .def_static(
          "borrow",
          [](std::shared_ptr<Context> context, std::uintptr_t address) {
            return Stream::borrow(context, reinterpret_cast<CUstream>(address), std::make_shared<TurnsInPython>());
          },
          py::arg("context").none(false), py::arg("address"))
      .def_property_readonly("address", [](const Stream& stream) { return address_of(stream.get()); })
      .def("synchronize", &Stream::synchronize, NoGil())
      .def("record", &Stream::record, py::arg("event"))
      .def("wait", &Stream::wait, py::arg("event"));
  py::class_<HeldTurn>(m, "Turn")
      .def(py::init<const Stream&>(), py::arg("stream"), py::keep_alive<1, 2>(),
           "A `with` block in which this thread alone enqueues on a stream.")
      .def("__enter__", &HeldTurn::enter)
      .def("__exit__", [](HeldTurn& self, const py::args&) { self.exit(); });

  py::class_<HostBuffer>(m, "HostBuffer", py::buffer_protocol())
      .def(py::init([](std::shared_ptr<Context> context, std::size_t bytes) {
             return std::make_unique<HostBuffer>(std::move(context), bytes);
           }),
           py::arg("context").none(false), py::arg("bytes"))
      .def_buffer([](HostBuffer& buffer) {
        return py::buffer_info(static_cast<std::uint8_t*>(buffer.data()), static_cast<py::ssize_t>(buffer.bytes()));
      });
  py::class_<DeviceBuffer>(m, "DeviceBuffer")
      .def(py::init([](std::shared_ptr<Context> context, std::size_t bytes) {
             return std::make_unique<DeviceBuffer>(std::move(context), bytes);
           }),
           py::arg("context").none(false), py::arg("bytes"))
      .def_static(
          "borrow",
          [](std::shared_ptr<Context> context, CUdeviceptr address, std::size_t bytes) {
            return DeviceBuffer::borrow(std::move(context), address, bytes);
          },
          py::arg("context").none(false), py::arg("address"), py::arg("bytes"))
      .def_property_readonly("address", &DeviceBuffer::get)
      .def_property_readonly("bytes", &DeviceBuffer::bytes)
      .def("copy", &DeviceBuffer::copy, py::arg("stream"), py::arg("source"), py::arg("bytes"), py::arg("offset") = 0)
      .def(
          "upload",
          [](DeviceBuffer& buffer, const Stream& stream, const py::buffer& from, std::size_t offset) {
            const py::buffer_info info = from.request();
            buffer.upload(stream, info.ptr, static_cast<std::size_t>(info.size * info.itemsize), offset);
          },
          py::arg("stream"), py::arg("source"), py::arg("offset") = 0)
      .def(
          "download",
          [](const DeviceBuffer& buffer, const Stream& stream, const py::buffer& to, std::size_t offset) {
            const py::buffer_info info = to.request(true);
            buffer.download(stream, info.ptr, static_cast<std::size_t>(info.size * info.itemsize), offset);
          },
          py::arg("stream"), py::arg("target"), py::arg("offset") = 0);
}

}  // namespace stepfuse
