#include "core/pgd_step.h"

#include <cmath>
#include <limits>

#include "bindings/bindings.h"
#include "bindings/checks.h"
#include "bindings/dtype.h"

namespace py = pybind11;

namespace lordfast {
namespace {

Norm parse_norm(const std::string& norm) {
    if (norm == "linf") return Norm::linf;
    require(norm == "l2", "norm", quoted(norm), "'linf' or 'l2'");
    return Norm::l2;
}

// One of the three inputs, against out.
void check_pointer(const char* argument, uintptr_t pointer, uintptr_t out, uintptr_t itemsize, uintptr_t bytes) {
    require(pointer != 0, argument, "a null pointer", "the address of batch * numel elements");
    require(pointer % itemsize == 0, argument, pointer, "an address aligned to the dtype");
    const bool apart = pointer == out || pointer + bytes <= out || out + bytes <= pointer;
    require(apart, argument, "an array that partly overlaps out", "out itself or an array apart from it");
}

void pgd_step_checked(uintptr_t x_adv, uintptr_t x_orig, uintptr_t grad, uintptr_t out, int64_t batch, int64_t numel,
                      const std::string& dtype, const std::string& norm, double step_size, double eps, double low,
                      double high, int direction, int threads) {
    PgdStep step{};
    step.dtype = parse_dtype(dtype);
    step.norm = parse_norm(norm);
    const int64_t item_bytes = itemsize(step.dtype);

    require(batch >= 0, "batch", batch, "0 or more");
    require(numel >= 0, "numel", numel, "0 or more");
    require(batch == 0 || numel <= std::numeric_limits<int64_t>::max() / item_bytes / batch, "numel", numel,
            "a number of elements whose bytes, batch times, fit in 63 bits");
    require(direction == 1 || direction == -1, "direction", direction, "1 or -1");
    require(threads >= 1, "threads", threads, "1 or more");

    // Once, here; the checks are on what the kernels will see.
    step.step_size = static_cast<float>(step_size);
    step.eps = static_cast<float>(eps);
    step.low = static_cast<float>(low);
    step.high = static_cast<float>(high);
    require(std::isfinite(step.step_size) && step.step_size >= 0.0f, "step_size", step_size, "finite and 0 or more");
    require(step.eps >= 0.0f, "eps", eps, "0 or more");
    require(!std::isnan(step.low), "low", low, "a number");
    require(step.low <= step.high, "high", high, "a number that is at least low");

    const int64_t bytes = batch * numel * item_bytes;
    if (bytes == 0) return;
    check_pointer("out", out, out, item_bytes, bytes);
    check_pointer("x_adv", x_adv, out, item_bytes, bytes);
    check_pointer("x_orig", x_orig, out, item_bytes, bytes);
    check_pointer("grad", grad, out, item_bytes, bytes);

    step.x_adv = reinterpret_cast<const void*>(x_adv);
    step.x_orig = reinterpret_cast<const void*>(x_orig);
    step.grad = reinterpret_cast<const void*>(grad);
    step.out = reinterpret_cast<void*>(out);
    step.batch = batch;
    step.numel = numel;
    step.direction = static_cast<float>(direction);
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
