#include "bindings/bindings.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "Native kernels of lordfast on raw pointers. Not an interface for users: call lordfast.ops.";
    lordfast::bind_build_info(m);
    lordfast::bind_cpu_lord(m);
    lordfast::bind_pgd_step(m);
#ifdef LORDFAST_WITH_CUDA
    lordfast::bind_cuda_pgd_step(m);
    lordfast::bind_cuda_lord(m);
#endif
}
