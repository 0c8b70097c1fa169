#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <limits>

#include "bindings/activation.h"
#include "bindings/bindings.h"
#include "bindings/checks.h"
#include "bindings/dtype.h"
#include "core/cuda/lord.h"

namespace py = pybind11;
using namespace py::literals;

namespace lordfast {
namespace {

using cuda::LordBackward;
using cuda::LordShape;

using Sizes = std::array<int64_t, 6>;         // m, k, n, rank, hidden, batch
using Parameters = std::array<uintptr_t, 7>;  // A, B, B', w1, b1, w2, b2
using Gradients = std::array<uintptr_t, 8>;   // x and the parameters; 0 where not wanted

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

LordShape checked_shape(const Sizes& sizes, const std::string& dtype, const std::string& activation, double scaling) {
    const auto [m, k, n, rank, hidden, batch] = sizes;
    require(m >= 0, "m", m, "0 or more");
    require(k >= 0, "k", k, "0 or more");
    require(n >= 1, "n", n, "1 or more");
    require(rank >= 1 && rank <= cuda::kMaxRank, "rank", rank, "1 to 64");
    require(hidden >= 1 && hidden <= std::numeric_limits<int>::max() / cuda::kMaxRank, "hidden", hidden,
            "1 or more, and 64 times it in 31 bits");
    require(batch >= 0 && (batch == 0 ? true : m % batch == 0), "batch", batch, "0, or a divisor of m");
    // Factors of 1024: the widest sums over m, k or n that the workspace holds have fewer elements for each.
    constexpr int64_t most = std::numeric_limits<int64_t>::max() / 1024;
    require(m == 0 || std::max(k, n) <= most / m, "m", m, "a number of rows whose elements fit in 53 bits");
    return {m,
            k,
            n,
            static_cast<int>(rank),
            static_cast<int>(hidden),
            batch,
            parse_dtype(dtype),
            parse_activation(activation),
            static_cast<float>(scaling)};
}

cuda::LordParameters checked_parameters(const Parameters& p) {
    constexpr const char* names[] = {"lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2"};
    for (size_t i = 0; i < p.size(); ++i) {
        require(p[i] % sizeof(float) == 0, names[i], p[i], "an address aligned to float32");
        // A may have no columns.
        require(p[i] != 0 || i == 0, names[i], "a null pointer", "the address of a parameter");
    }
    return {at<const float>(p[0]), at<const float>(p[1]), at<const float>(p[2]), at<const float>(p[3]),
            at<const float>(p[4]), at<const float>(p[5]), at<const float>(p[6])};
}

void check_array(const char* argument, uintptr_t address, int64_t elements, int itemsize) {
    require(address != 0 || elements == 0, argument, "a null pointer", "the address of an array");
    require(address % itemsize == 0, argument, address, "an address aligned to the dtype");
}

LordBackward gradients_into(const Gradients& g) {
    LordBackward call{};
    call.x_grad = at<void>(g[0]);
    call.a = at<float>(g[1]), call.b = at<float>(g[2]), call.b_adv = at<float>(g[3]);
    call.w1 = at<float>(g[4]), call.b1 = at<float>(g[5]), call.w2 = at<float>(g[6]), call.b2 = at<float>(g[7]);
    return call;
}

int64_t forward_workspace(const Sizes& sizes) {
    return cuda::lord_forward_workspace(checked_shape(sizes, "float32", "relu", 1.0));
}

int64_t backward_workspace(const Sizes& sizes, const std::string& dtype, bool grad_y,
                           const std::array<bool, 8>& wanted) {
    Gradients gradients{};
    for (size_t i = 0; i < wanted.size(); ++i) gradients[i] = wanted[i] ? 16 : 0;
    LordBackward call = gradients_into(gradients);
    call.grad_y = at<const void>(grad_y ? 16 : 0);
    return cuda::lord_backward_workspace(checked_shape(sizes, dtype, "relu", 1.0), call);
}

void lord_forward(uintptr_t x, uintptr_t y, uintptr_t u, uintptr_t gate_logit, const Parameters& parameters,
                  const Sizes& sizes, const std::string& dtype, const std::string& activation, double scaling,
                  bool accumulate, uintptr_t workspace, int64_t workspace_bytes, int device, uintptr_t stream) {
    const LordShape shape = checked_shape(sizes, dtype, activation, scaling);
    const cuda::LordParameters p = checked_parameters(parameters);
    check_array("x", x, shape.m * shape.k, itemsize(shape.dtype));
    check_array("y", y, shape.m * shape.n, itemsize(shape.dtype));
    check_array("u", u, shape.m, sizeof(float));
    check_array("gate_logit", gate_logit, shape.lambdas(), sizeof(float));
    require_workspace(workspace, workspace_bytes, cuda::lord_forward_workspace(shape));
    py::gil_scoped_release released;
    cuda::lord_forward(
        shape, p,
        {at<const void>(x), at<void>(y), accumulate, at<float>(u), at<float>(gate_logit), at<void>(workspace)},
        {device, stream});
}

void lord_backward(uintptr_t grad_y, uintptr_t grad_logit, uintptr_t x, uintptr_t gate_logit, uintptr_t u,
                   const Parameters& parameters, const Gradients& gradients, const Sizes& sizes,
                   const std::string& dtype, const std::string& activation, double scaling, bool accumulate,
                   uintptr_t workspace, int64_t workspace_bytes, int device, uintptr_t stream) {
    const LordShape shape = checked_shape(sizes, dtype, activation, scaling);
    const cuda::LordParameters p = checked_parameters(parameters);
    check_array("u", u, shape.m, sizeof(float));
    check_array("gate_logit", gate_logit, shape.lambdas(), sizeof(float));
    check_array("grad_y", grad_y, 0, itemsize(shape.dtype));
    check_array("grad_logit", grad_logit, 0, sizeof(float));
    check_array("x", x, gradients[1] == 0 ? 0 : shape.m * shape.k, itemsize(shape.dtype));
    check_array("gradients[0]", gradients[0], 0, itemsize(shape.dtype));
    for (size_t i = 1; i < gradients.size(); ++i) check_array("gradients", gradients[i], 0, sizeof(float));
    LordBackward call = gradients_into(gradients);
    call.grad_y = at<const void>(grad_y), call.grad_logit = at<const float>(grad_logit);
    call.x = at<const void>(x), call.gate_logit = at<const float>(gate_logit), call.u = at<const float>(u);
    call.accumulate = accumulate, call.workspace = at<void>(workspace);
    require_workspace(workspace, workspace_bytes, cuda::lord_backward_workspace(shape, call));
    py::gil_scoped_release released;
    cuda::lord_backward(shape, p, call, {device, stream});
}

}  // namespace

void bind_cuda_lord(py::module_& m) {
    m.def("cuda_lord_forward_workspace", &forward_workspace, "sizes"_a,
          "Bytes of device memory that cuda_lord_forward wants to work in.");
    m.def(
        "cuda_lord_backward_workspace", &backward_workspace, "sizes"_a, "dtype"_a, "grad_y"_a, "wanted"_a,
        "Bytes of device memory that cuda_lord_backward wants to work in; grad_y: whether there is one, wanted: which\n"
        "of the gradients.");
    m.def(
        "cuda_lord_forward", &lord_forward, "x"_a, "y"_a, "u"_a, "gate_logit"_a, "parameters"_a, "sizes"_a, "dtype"_a,
        "activation"_a, "scaling"_a, "accumulate"_a, "workspace"_a, "workspace_bytes"_a, "device"_a, "stream"_a,
        "LoRD's u, gate and rank-r update of y (added to y's values if accumulate), on addresses of contiguous CUDA\n"
        "arrays: x (m, k) and y (m, n) of a dtype, the others float32. parameters are A, B, B', w1, b1, w2, b2; sizes\n"
        "are m, k, n, rank, hidden and batch, 0 where each row has its own lambda. Queued on a stream (an integer) of\n"
        "a device, and not waited for. ValueError on a bad argument, RuntimeError where CUDA fails.");
    m.def(
        "cuda_lord_backward", &lord_backward, "grad_y"_a, "grad_logit"_a, "x"_a, "gate_logit"_a, "u"_a, "parameters"_a,
        "gradients"_a, "sizes"_a, "dtype"_a, "activation"_a, "scaling"_a, "accumulate"_a, "workspace"_a,
        "workspace_bytes"_a, "device"_a, "stream"_a,
        "The gradients of x (added to the values there if accumulate) and of the parameters, in that order, to the\n"
        "addresses in gradients; 0 is a gradient that nobody wants. grad_y, grad_logit and x may be 0 where there is\n"
        "none. Otherwise as cuda_lord_forward.");
}

}  // namespace lordfast
