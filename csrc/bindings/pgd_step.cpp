#include "bindings/bindings.h"
#include "bindings/pgd_step_arguments.h"

namespace py = pybind11;

namespace lordfast {
namespace {

void pgd_step_checked(uintptr_t x_adv, uintptr_t x_orig, uintptr_t grad, uintptr_t out, int64_t batch, int64_t numel,
                      const std::string& dtype, const std::string& norm, double step_size, double eps, double low,
                      double high, int direction, int threads) {
    const PgdStep step =
        checked_pgd_step(x_adv, x_orig, grad, out, batch, numel, dtype, norm, step_size, eps, low, high, direction);
    require(threads >= 1, "threads", threads, "1 or more");
    if (batch * numel == 0) return;
    // Before the GIL goes: os.environ writes to the same table under it.
    const Isa isa = active_isa();

    py::gil_scoped_release released;
    pgd_step(step, isa, threads);
}

}  // namespace

void bind_pgd_step(py::module_& m) {
    m.def("pgd_step", &pgd_step_checked, py::arg("x_adv"), py::arg("x_orig"), py::arg("grad"), py::arg("out"),
          py::arg("batch"), py::arg("numel"), py::arg("dtype"), py::arg("norm"), py::arg("step_size"), py::arg("eps"),
          py::arg("low"), py::arg("high"), py::arg("direction"), py::arg("threads"),
          "One PGD step on the CPU: out = x_adv + direction * step, projected onto the eps ball around x_orig and "
          "clamped\n"
          "to [low, high]. The first four are addresses of contiguous (batch, numel) arrays of one dtype, 'float32',\n"
          "'bfloat16' or 'float16'; out may be x_adv. norm is 'linf' (step = step_size * sign(grad)) or 'l2' (step =\n"
          "step_size * grad / ||grad|| for each sample). Computed in fp32 and rounded once: a 16-bit result can leave "
          "the\n"
          "ball by that rounding. The bits depend on neither threads, batch nor instruction set. ValueError on a bad\n"
          "argument.");
}

}  // namespace lordfast
