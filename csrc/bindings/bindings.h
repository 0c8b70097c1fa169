// lordfast._C: each file checks the arguments of its functions, releases the GIL and calls core.
#pragma once

#include <pybind11/pybind11.h>

namespace lordfast {

void bind_cpu_lord(pybind11::module_& m);
void bind_pgd_step(pybind11::module_& m);
void bind_build_info(pybind11::module_& m);
void bind_cuda_pgd_step(pybind11::module_& m);  // these two only where LORDFAST_WITH_CUDA is defined
void bind_cuda_lord(pybind11::module_& m);

}  // namespace lordfast
