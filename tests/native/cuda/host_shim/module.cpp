// The real bindings of the CUDA kernels, over kernels that run on the CPU.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "fibres.h"

std::vector<float> planted(bool waits);  // planted.cpp

PYBIND11_MODULE(cuda_on_host, m) {
    lordfast::bind_cuda_pgd_step(m);
    lordfast::bind_cuda_lord(m);
    m.def("set_order", [](int order) { shim::settings().order = static_cast<shim::Order>(order); });
    m.def("planted", &planted);
    m.def("take_launched", [] {
        std::vector<std::string> names;
        names.swap(shim::settings().launched);
        return names;
    });
}
