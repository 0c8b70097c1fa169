// The table that each instruction set's translation unit fills.
#pragma once

#include "core/cpu/lord_gate.h"
#include "core/cpu/lord_products.h"

namespace lordfast {
namespace {

template <class S>
constexpr LordKernels lord_kernels() {
    return {
        {products_for<S, float>(), products_for<S, Bf16>(), products_for<S, Fp16>()},
        fold<S>,
        {gate<S, Relu<S>>, gate<S, Silu<S>>, gate<S, Gelu<S>>},
        {gate_backward<S, Relu<S>>, gate_backward<S, Silu<S>>, gate_backward<S, Gelu<S>>},
        sigmoid<S>,
        flush<S>,
    };
}

}  // namespace
}  // namespace lordfast
