// The runtime's engine in Python; acn_kernels.inference.engine is what users see of it.
#include "bindings_engine.h"

#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "acn/runtime/engine.h"
#include "acn/runtime/errors.h"
#include "composition.h"
#include "runtime/packed_weight.h"

namespace acn {
namespace {

using Returned = std::tuple<at::Tensor, at::Tensor, std::vector<int64_t>, std::vector<int64_t>,
                            int64_t>;

Graphs graphs_of(const std::string& name) {
  if (name == "auto") return Graphs::automatic;
  if (name == "off") return Graphs::off;
  if (name == "steps") return Graphs::steps;
  if (name == "whole") return Graphs::whole;
  throw std::invalid_argument(
      text("graphs is '", name, "'; it takes one of auto, off, steps, whole"));
}

Returned run(const Engine& engine, const at::Tensor& images, std::vector<int64_t> exits,
             double threshold, const std::string& criterion, int64_t depth, int64_t micro_batch,
             bool counts, int64_t lag, const std::string& graphs) {
  RunOptions options;
  options.exits = std::move(exits);
  options.threshold = threshold;
  options.criterion = criterion_of(criterion);
  options.depth = depth;
  options.micro_batch = micro_batch;
  options.counts = counts;
  options.lag = lag;
  options.graphs = graphs_of(graphs);
  Result result = engine.run(images, options);
  return {result.logits, result.depth, result.stops, result.counts, result.undecided};
}

}  // namespace

void bind_engine(pybind11::module_& m) {
  namespace py = pybind11;
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const FileError& error) {
      PyErr_SetString(PyExc_FileNotFoundError, error.what());
    }
  });
  const py::call_guard<py::gil_scoped_release> no_gil;
  py::class_<Engine>(m, "Engine")
      .def(py::init([](const std::string& config, Tensors weights) {
             return std::make_unique<Engine>(parse_config(config), std::move(weights));
           }),
           no_gil)
      .def_static(
          "from_folder",
          [](const std::string& folder, bool compiled, const std::string& device) {
            return Engine::from_folder(folder, compiled, at::Device(device));
          },
          no_gil)
      .def_property_readonly("compiled_segments", &Engine::compiled_segments)
      .def_property_readonly("default_micro_batch", &Engine::default_micro_batch)
      .def_property_readonly("dtype", [](const Engine& engine) { return engine.dtype(); })
      .def_property_readonly("device", [](const Engine& engine) { return engine.device(); })
      .def_property_readonly("graphs",
                             [](const Engine& engine) {
                               const GraphReport report = engine.graphs();
                               return std::tuple(report.captured, report.held, report.obstacle);
                             })
      .def("run", &run, no_gil, py::arg("input"), py::arg("exits"), py::arg("threshold"),
           py::arg("criterion"), py::arg("depth"), py::arg("micro_batch"),
           py::arg("counts") = true, py::arg("lag") = 1, py::arg("graphs") = "auto");
  py::class_<Places>(m, "Places")
      .def(py::init<std::vector<at::Tensor>>())
      .def("hold", &Places::hold);
  m.def("weights_changed", &weights_changed);
  m.def("types_are", &types_are);
  m.def("sizes_are", &sizes_are);
  m.def("values_are", &values_are);
  m.def("entries_are", &entries_are);
}

}  // namespace acn
