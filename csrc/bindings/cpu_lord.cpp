#include <array>
#include <cmath>
#include <limits>

#include "bindings/activation.h"
#include "bindings/bindings.h"
#include "bindings/checks.h"
#include "bindings/dtype.h"
#include "core/cpu/lord.h"

namespace py = pybind11;

namespace lordfast {
namespace {

using Sizes = std::array<int64_t, 6>;        // batch, tokens, k, n, r, h
using Weights = std::array<uintptr_t, 7>;    // lord_A, lord_B, lord_B_adv, w1, b1, w2, b2
using Gradients = std::array<uintptr_t, 8>;  // of x and then of Weights

// Tuples and not one argument each: pybind11 takes as long for each of twenty integers as for a small tuple.
template <size_t kCount, class Number>
std::array<Number, kCount> unpack(const char* argument, const py::tuple& tuple, const char* expected) {
    require(tuple.size() == kCount, argument, std::to_string(tuple.size()) + " numbers", expected);
    std::array<Number, kCount> numbers;
    for (size_t i = 0; i < kCount; ++i) numbers[i] = tuple[i].cast<Number>();
    return numbers;
}

// An address of `count` elements; `bytes` is the alignment.
template <class T>
T* address(const char* argument, uintptr_t pointer, int64_t bytes, int64_t count) {
    if (count == 0) return nullptr;
    require(pointer != 0, argument, "a null pointer", "the address of an array");
    require(pointer % static_cast<uintptr_t>(bytes) == 0, argument, pointer, "an address aligned to its elements");
    return reinterpret_cast<T*>(pointer);
}

// The same, or null for an argument that is left out.
template <class T>
T* address_or_null(const char* argument, uintptr_t pointer, int64_t bytes, int64_t count) {
    return pointer == 0 ? nullptr : address<T>(argument, pointer, bytes, count);
}

LordProblem parse_problem(const py::tuple& sizes_, const py::tuple& weights_, const std::string& dtype,
                          const std::string& activation, double scaling, bool per_sample, int threads) {
    const Sizes sizes = unpack<6, int64_t>("sizes", sizes_, "six: batch, tokens, k, n, r, h");
    const Weights weights =
        unpack<7, uintptr_t>("weights", weights_, "seven addresses: lord_A, lord_B, lord_B_adv, w1, b1, w2, b2");
    constexpr const char* names[] = {"batch", "tokens", "k", "n", "r", "h"};
    for (size_t i = 0; i < 6; ++i) {
        const int64_t least = i < 3 ? 0 : 1;
        require(sizes[i] >= least, names[i], sizes[i], least == 0 ? "0 or more" : "1 or more");
        // So that no size in bytes overflows.
        const int64_t most = int64_t{1} << (i < 2 ? 40 : 24);
        require(sizes[i] <= most, names[i], sizes[i], i < 2 ? "at most 2^40" : "at most 2^24");
    }
    LordProblem p{};
    p.batch = sizes[0], p.tokens = sizes[1], p.k = sizes[2], p.n = sizes[3], p.r = sizes[4], p.h = sizes[5];
    const int64_t widest = std::max({p.k, p.n, p.r, p.h}) + 16;
    require(p.batch == 0 || p.tokens <= (int64_t{1} << 56) / p.batch / widest, "tokens", p.tokens,
            "a number that, times batch and the widest row, is at most 2^56");
    p.dtype = parse_dtype(dtype);
    p.activation = parse_activation(activation);
    p.per_sample = per_sample;
    p.scaling = static_cast<float>(scaling);
    require(std::isfinite(p.scaling), "scaling", scaling, "a finite float");
    require(threads >= 1, "threads", threads, "1 or more");
    p.a = address<const float>("lord_A", weights[0], 4, p.r * p.k);
    p.b = address<const float>("lord_B", weights[1], 4, p.n * p.r);
    p.b_adv = address<const float>("lord_B_adv", weights[2], 4, p.n * p.r);
    p.w1 = address<const float>("w1", weights[3], 4, p.h * p.n);
    p.b1 = address<const float>("b1", weights[4], 4, p.h);
    p.w2 = address<const float>("w2", weights[5], 4, p.h);
    p.b2 = address<const float>("b2", weights[6], 4, 1);
    return p;
}

void forward_checked(uintptr_t x, uintptr_t y, uintptr_t gate_logit, uintptr_t u, const py::tuple& sizes,
                     const py::tuple& weights, const std::string& dtype, const std::string& activation, double scaling,
                     bool per_sample, bool has_base, int threads) {
    const LordProblem p = parse_problem(sizes, weights, dtype, activation, scaling, per_sample, threads);
    const int64_t m = p.batch * p.tokens, item = itemsize(p.dtype);
    LordForward io{};
    io.x = address<const void>("x", x, item, m * p.k);
    io.y = address<void>("y", y, item, m * p.n);
    io.gate_logit = address<float>("gate_logit", gate_logit, 4, per_sample ? p.batch : m);
    io.u = address<float>("u", u, 4, m);
    io.has_base = has_base;
    // Before the GIL goes: os.environ writes to the same table under it.
    const Isa isa = active_isa();

    py::gil_scoped_release released;
    lord_forward(p, io, isa, threads);
}

void backward_checked(uintptr_t grad_y, uintptr_t grad_logit, uintptr_t x, uintptr_t gate_logit, uintptr_t u,
                      const py::tuple& gradients_, const py::tuple& sizes, const py::tuple& weights,
                      const std::string& dtype, const std::string& activation, double scaling, bool per_sample,
                      bool has_base, int threads) {
    const LordProblem p = parse_problem(sizes, weights, dtype, activation, scaling, per_sample, threads);
    const Gradients to = unpack<8, uintptr_t>(
        "gradients", gradients_, "eight addresses: of x, lord_A, lord_B, lord_B_adv, w1, b1, w2, b2, 0 if not wanted");
    const int64_t m = p.batch * p.tokens, item = itemsize(p.dtype), logits = per_sample ? p.batch : m;
    LordBackward io{};
    io.grad_y = address_or_null<const void>("grad_y", grad_y, item, m * p.n);
    io.grad_logit = address_or_null<const float>("grad_logit", grad_logit, 4, logits);
    io.gate_logit = address<const float>("gate_logit", gate_logit, 4, logits);
    io.u = address<const float>("u", u, 4, m);
    io.dx = address_or_null<void>("dx", to[0], item, m * p.k);
    io.has_base = has_base;
    io.da = address_or_null<float>("dA", to[1], 4, p.r * p.k);
    io.db = address_or_null<float>("dB", to[2], 4, p.n);
    io.db_adv = address_or_null<float>("dB_adv", to[3], 4, p.n);
    io.dw1 = address_or_null<float>("dw1", to[4], 4, p.h);
    io.db1 = address_or_null<float>("db1", to[5], 4, p.h);
    io.dw2 = address_or_null<float>("dw2", to[6], 4, p.h);
    io.db2 = address_or_null<float>("db2", to[7], 4, 1);
    if (io.da != nullptr) io.x = address<const void>("x", x, item, m * p.k);
    const Isa isa = active_isa();

    py::gil_scoped_release released;
    lord_backward(p, io, isa, threads);
}

}  // namespace

void bind_cpu_lord(py::module_& m) {
    m.def("cpu_lord_forward", &forward_checked, py::arg("x"), py::arg("y"), py::arg("gate_logit"), py::arg("u"),
          py::arg("sizes"), py::arg("weights"), py::arg("dtype"), py::arg("activation"), py::arg("scaling"),
          py::arg("per_sample"), py::arg("has_base"), py::arg("threads"),
          "LoRD's forward on the CPU after the base product: u = x A^T, the gate, y += s B u + lambda s B' u.\n\n"
          "Addresses of contiguous arrays: x (batch, tokens, k) and y (batch, tokens, n) of one dtype, 'float32',\n"
          "'bfloat16' or 'float16'; gate_logit, (batch, tokens) or, if per_sample, (batch,), and u (batch, tokens, r)\n"
          "in float32. sizes is (batch, tokens, k, n, r, h); weights the addresses of the float32 lord_A (r, k),\n"
          "lord_B (n, r), lord_B_adv (n, r), w1 (h, n), b1 (h,), w2 (h,), b2 (). y is written, not added to, unless\n"
          "has_base. ValueError on a bad argument.");
    m.def("cpu_lord_backward", &backward_checked, py::arg("grad_y"), py::arg("grad_logit"), py::arg("x"),
          py::arg("gate_logit"), py::arg("u"), py::arg("gradients"), py::arg("sizes"), py::arg("weights"),
          py::arg("dtype"), py::arg("activation"), py::arg("scaling"), py::arg("per_sample"), py::arg("has_base"),
          py::arg("threads"),
          "The gradients of cpu_lord_forward on the CPU, after the base product's: dx += du A.\n\n"
          "grad_y and x have the forward's dtype; grad_logit, gate_logit and u are float32. grad_y or grad_logit may\n"
          "be 0, and x where lord_A's gradient is not wanted. gradients are the addresses to write those of x (in\n"
          "dtype; added to if has_base), lord_A, lord_B, lord_B_adv, w1, b1, w2 and b2 (float32), 0 if not wanted.\n"
          "The same bits for any number of threads. ValueError on a bad argument.");
}

}  // namespace lordfast
