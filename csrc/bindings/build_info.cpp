#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "core/cpu/isa.h"

#ifdef LORDFAST_WITH_CUDA
#    include "core/cuda/runtime.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace lordfast {
namespace {

#ifdef LORDFAST_WITH_CUDA
py::object text_or_none(const std::string& text) {
    return text.empty() ? py::object(py::none()) : py::object(py::str(text));
}
#endif

py::dict cuda_build() {
#ifdef LORDFAST_WITH_CUDA
    return py::dict("version"_a = cuda::compiled_version(), "architectures"_a = cuda::compiled_architectures(),
                    "reason"_a = py::none());
#else
    return py::dict("version"_a = py::none(), "architectures"_a = py::list(), "reason"_a = LORDFAST_NO_CUDA_REASON);
#endif
}

py::dict build_info() {
#ifdef _OPENMP
    const py::object openmp = py::str(std::to_string(_OPENMP));
#else
    const py::object openmp = py::none();
#endif
    return py::dict("version"_a = LORDFAST_VERSION, "compiler"_a = LORDFAST_COMPILER, "openmp"_a = openmp,
                    "cuda"_a = cuda_build());
}

py::dict cuda_status() {
#ifdef LORDFAST_WITH_CUDA
    cuda::Status status;
    {
        py::gil_scoped_release released;  // the first call initialises the driver
        status = cuda::status();
    }
    py::list devices;
    for (const cuda::Device& device : status.devices) {
        devices.append(py::dict("name"_a = device.name, "capability"_a = py::make_tuple(device.major, device.minor)));
    }
    return py::dict("device_count"_a = status.devices.size(), "devices"_a = devices,
                    "runtime_version"_a = text_or_none(status.runtime_version),
                    "driver_version"_a = text_or_none(status.driver_version), "reason"_a = text_or_none(status.reason));
#else
    return py::dict("device_count"_a = 0, "devices"_a = py::list(), "runtime_version"_a = py::none(),
                    "driver_version"_a = py::none(), "reason"_a = LORDFAST_NO_CUDA_REASON);
#endif
}

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.push_back(name(isa));
    return names;
}

}  // namespace

void bind_build_info(py::module_& m) {
    m.def(
        "build_info", &build_info,
        "How this extension was built: version, compiler, openmp (the specification's date, or None), cuda (version,\n"
        "architectures, and the reason where it was left out).");
    m.def("cuda_status", &cuda_status,
          "What CUDA finds on this machine: device_count, devices, runtime_version, driver_version, and the reason "
          "where\n"
          "there is no device. Initialises the driver; never raises.");
    m.def(
        "cpu_isa", [] { return std::string(name(active_isa())); },
        "The instruction set that CPU kernels run with: the best available one, or what LORDFAST_CPU_ISA names.\n"
        "ValueError where that names none, or one that this machine lacks.");
    m.def("available_isas", &isa_names, "The instruction sets that LORDFAST_CPU_ISA can name here, best first.");
}

}  // namespace lordfast
