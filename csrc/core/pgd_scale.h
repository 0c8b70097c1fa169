// From the two norms of an l2 step to its parameters: part of the definition, so one function for the CPU and CUDA.
#pragma once

#include <cfloat>

#include "core/pgd_params.h"

#ifdef __CUDACC__
#    define LORDFAST_HOST_DEVICE __host__ __device__
#else
#    define LORDFAST_HOST_DEVICE
#endif

namespace lordfast {

LORDFAST_HOST_DEVICE inline L2Params l2_params(double grad_norm, float signed_step, float low, float high) {
    L2Params params{1.0f, 0.0f, grad_norm > 0.0 && grad_norm <= DBL_MAX, low, high};
    if (params.moves) {
        // Exact powers of two; outside these bounds step_size / norm could overflow or lose its bits in fp32.
        if (grad_norm < 0x1p-60) params.prescale = 0x1p80f;
        if (grad_norm > 0x1p60) params.prescale = 0x1p-80f;
        params.scale = static_cast<float>(signed_step / (grad_norm * params.prescale));
    }
    return params;
}

// shrink = min(1, eps / dist). A NaN distance gives NaN: a sample with a NaN in it must not pass for one inside its
// ball.
LORDFAST_HOST_DEVICE inline float l2_shrink(double dist, float eps) {
    return dist <= eps ? 1.0f : static_cast<float>(eps / dist);
}

}  // namespace lordfast
