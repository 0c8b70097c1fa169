// The gate's activations and their derivatives, in fp32.
#pragma once

#include "core/cuda/lord_block.cuh"

namespace lordfast::cuda {
namespace {

// "gelu" is the exact one, by erf. Comparisons so that a NaN stays one.
__device__ inline float activate(float z, Activation activation) {
    if (activation == Activation::relu) return z <= 0.0f ? 0.0f : z;
    if (activation == Activation::silu) return z * sigmoid(z);
    return 0.5f * z * (1.0f + erff(0.70710678f * z));
}

// act'(z), with relu'(0) = 0.
__device__ inline float derivative(float z, Activation activation) {
    if (activation == Activation::relu) return z <= 0.0f ? 0.0f : 1.0f;
    if (activation == Activation::silu) {
        const float s = sigmoid(z);
        return s * (1.0f + z * (1.0f - s));
    }
    const float density = 0.39894228f * expf(-0.5f * z * z);
    return 0.5f * (1.0f + erff(0.70710678f * z)) + z * density;
}

}  // namespace
}  // namespace lordfast::cuda
