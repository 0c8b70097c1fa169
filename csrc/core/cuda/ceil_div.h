// How many runs of b cover a.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lordfast::cuda {

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace lordfast::cuda
