// The arguments that pgd_step takes on every kind of device, checked.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "bindings/checks.h"
#include "bindings/dtype.h"
#include "core/pgd_step.h"

namespace lordfast {

inline Norm parse_norm(const std::string& norm) {
    if (norm == "linf") return Norm::linf;
    require(norm == "l2", "norm", quoted(norm), "'linf' or 'l2'");
    return Norm::l2;
}

// batch * numel elements of itemsize bytes can be counted.
inline void check_sizes(int64_t batch, int64_t numel, int64_t itemsize) {
    require(batch >= 0, "batch", batch, "0 or more");
    require(numel >= 0, "numel", numel, "0 or more");
    require(batch == 0 || numel <= std::numeric_limits<int64_t>::max() / itemsize / batch, "numel", numel,
            "a number of elements whose bytes, batch times, fit in 63 bits");
}

// One of the three inputs, against out.
inline void check_pointer(const char* argument, uintptr_t pointer, uintptr_t out, uintptr_t itemsize, uintptr_t bytes) {
    require(pointer != 0, argument, "a null pointer", "the address of batch * numel elements");
    require(pointer % itemsize == 0, argument, pointer, "an address aligned to the dtype");
    const bool apart = pointer == out || pointer + bytes <= out || out + bytes <= pointer;
    require(apart, argument, "an array that partly overlaps out", "out itself or an array apart from it");
}

inline PgdStep checked_pgd_step(uintptr_t x_adv, uintptr_t x_orig, uintptr_t grad, uintptr_t out, int64_t batch,
                                int64_t numel, const std::string& dtype, const std::string& norm, double step_size,
                                double eps, double low, double high, int direction) {
    PgdStep step{};
    step.dtype = parse_dtype(dtype);
    step.norm = parse_norm(norm);
    const int64_t item_bytes = itemsize(step.dtype);

    check_sizes(batch, numel, item_bytes);
    require(direction == 1 || direction == -1, "direction", direction, "1 or -1");

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
    if (bytes != 0) {
        check_pointer("out", out, out, item_bytes, bytes);
        check_pointer("x_adv", x_adv, out, item_bytes, bytes);
        check_pointer("x_orig", x_orig, out, item_bytes, bytes);
        check_pointer("grad", grad, out, item_bytes, bytes);
    }
    step.x_adv = reinterpret_cast<const void*>(x_adv);
    step.x_orig = reinterpret_cast<const void*>(x_orig);
    step.grad = reinterpret_cast<const void*>(grad);
    step.out = reinterpret_cast<void*>(out);
    step.batch = batch;
    step.numel = numel;
    step.direction = static_cast<float>(direction);
    return step;
}

}  // namespace lordfast
