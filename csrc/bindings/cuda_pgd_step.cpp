#include "bindings/bindings.h"
#include "bindings/pgd_step_arguments.h"
#include "core/cuda/pgd_step.h"

namespace py = pybind11;
using namespace py::literals;

namespace lordfast {
namespace {

int64_t workspace_checked(const std::string& norm, int64_t batch, int64_t numel) {
    check_sizes(batch, numel, 4);
    return cuda::pgd_step_workspace(parse_norm(norm), batch, numel);
}

void pgd_step_checked(uintptr_t x_adv, uintptr_t x_orig, uintptr_t grad, uintptr_t out, int64_t batch, int64_t numel,
                      const std::string& dtype, const std::string& norm, double step_size, double eps, double low,
                      double high, int direction, uintptr_t workspace, int64_t workspace_bytes, int device,
                      uintptr_t stream) {
    const PgdStep step =
        checked_pgd_step(x_adv, x_orig, grad, out, batch, numel, dtype, norm, step_size, eps, low, high, direction);
    const int64_t wanted = cuda::pgd_step_workspace(step.norm, batch, numel);
    require_workspace(workspace, workspace_bytes, wanted);
    py::gil_scoped_release released;
    cuda::pgd_step(step, reinterpret_cast<void*>(workspace), {device, stream});
}

}  // namespace

void bind_cuda_pgd_step(py::module_& m) {
    m.def("cuda_pgd_step_workspace", &workspace_checked, "norm"_a, "batch"_a, "numel"_a,
          "Bytes of device memory that cuda_pgd_step wants to work in.");
    m.def(
        "cuda_pgd_step", &pgd_step_checked, "x_adv"_a, "x_orig"_a, "grad"_a, "out"_a, "batch"_a, "numel"_a, "dtype"_a,
        "norm"_a, "step_size"_a, "eps"_a, "low"_a, "high"_a, "direction"_a, "workspace"_a, "workspace_bytes"_a,
        "device"_a, "stream"_a,
        "pgd_step on CUDA arrays, to the same bits: queued on a stream (an integer) of a device, and not waited for.\n"
        "The workspace begins on a 16-byte boundary. ValueError on a bad argument, RuntimeError where CUDA fails.");
}

}  // namespace lordfast
