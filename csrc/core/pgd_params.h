// The constants and parameters of pgd_step that kernels of every kind share; no standard header with inline functions.
#pragma once

#include <stddef.h>

namespace lordfast {

// Elements of one sample are reduced in chunks of this size, each into 16 double lanes (element i into lane i % 16),
// the lanes and then the chunks added in order. Part of the definition of the result's bits, so the same everywhere.
constexpr size_t kPgdChunk = 4096;
constexpr size_t kPgdLanes = 16;

struct LinfParams {
    float signed_step;  // direction * step_size
    float eps, low, high;
};

struct L2Params {
    // The step is (grad * prescale) * scale. prescale is a power of two that keeps scale = step_size / ||grad *
    // prescale|| within fp32 when the gradient is extremely small or large.
    float prescale, scale;
    bool moves;  // false: the gradient's norm is zero or not finite, and grad is not read
    float low, high;
};

}  // namespace lordfast
