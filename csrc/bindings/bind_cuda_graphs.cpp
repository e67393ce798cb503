#include <pybind11/functional.h>

#include <memory>

#include "../cuda/budget.h"
#include "../cuda/graph.h"
#include "bind_cuda.h"

namespace stepfuse {

namespace {

using namespace cuda;

// `with`, on one thread.
struct Holding {
  std::unique_ptr<HeldReleases> held;
};

void bind_budget(py::module_& m) {
  m.def("bucket_rows", &bucket_rows, py::arg("max_rows"), "Row counts worth a graph of their own, the largest first.");
  m.def("bucket_for", &bucket_for, py::arg("buckets"), py::arg("rows"), "The smallest bucket of at least rows, or -1.");
  m.def(
      "plan_budget",
      [](const std::vector<std::tuple<int, std::size_t, std::size_t>>& buckets, std::size_t available_bytes) {
        std::vector<Bucket> read;
        for (const auto& [rows, pool_bytes, own_bytes] : buckets) read.push_back({rows, pool_bytes, own_bytes});
        const Budget budget = plan_budget(read, available_bytes);
        std::vector<int> rows;
        for (const Bucket& bucket : budget.kept) rows.push_back(bucket.rows);
        return std::pair(rows, budget.bytes);
      },
      py::arg("buckets"), py::arg("available_bytes"),
      "Buckets as (rows, pool_bytes, own_bytes) to (rows kept, bytes).");
  m.def("capture_buckets", &capture_buckets, py::arg("buckets"), py::arg("capture"),
        "Captures the largest first; capture(rows) says if there was memory. Returns what was captured.");
}

}  // namespace

void bind_cuda_graphs(py::module_& m) {
  py::class_<Module, std::shared_ptr<Module>>(m, "Module")
      .def(py::init([](std::shared_ptr<Context> context, const py::bytes& image) {
             return std::make_shared<Module>(std::move(context), std::string(image));
           }),
           py::arg("context").none(false), py::arg("image"))
      .def(
          "info",
          [](const Module& module, const std::string& name) {
            const FunctionInfo info = module.info(module.function(name));
            py::dict found;
            found["registers"] = info.registers;
            found["local_bytes"] = info.local_bytes;
            found["max_threads"] = info.max_threads;
            return found;
          },
          py::arg("name"));
  py::class_<Graph, std::shared_ptr<Graph>>(m, "Graph")
      .def_static(
          "borrow",
          [](std::shared_ptr<Context> context, std::uintptr_t address) -> std::shared_ptr<Graph> {
            return borrowed<Graph>(context, address);
          },
          py::arg("context").none(false), py::arg("address"))
      .def_property_readonly("address", [](const Graph& graph) { return address_of(graph.get()); })
      .def("unrepeatable", &Graph::unrepeatable, "What a trajectory cannot repeat, a node each.");
  py::class_<Capture>(m, "Capture")
      .def(py::init<const Stream&>(), py::arg("stream"), py::keep_alive<1, 2>())
      .def("end", &Capture::end);
  py::class_<Holding>(m, "HeldReleases")
      .def(py::init<>())
      .def("__enter__", [](Holding& holding) { holding.held = std::make_unique<HeldReleases>(); })
      .def("__exit__", [](Holding& holding, const py::args&) { holding.held.reset(); });
  py::class_<GraphExec>(m, "GraphExec")
      .def(py::init<const Graph&>(), py::arg("graph"), NoGil())
      .def("upload", &GraphExec::upload, py::arg("stream"), NoGil())
      .def("launch", &GraphExec::launch, py::arg("stream"), NoGil());
  bind_budget(m);
}

}  // namespace stepfuse
