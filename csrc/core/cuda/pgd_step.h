// core/pgd_step.h's step on CUDA arrays.
#pragma once

#include <cstdint>

#include "core/cuda/queue.h"
#include "core/pgd_step.h"

namespace lordfast::cuda {

// Bytes of device memory that pgd_step wants to work in, on a 16-byte boundary; 0 for linf.
int64_t pgd_step_workspace(Norm norm, int64_t batch, int64_t numel);

// The definition of core/pgd_step.h to the last bit, for both norms: the bits are those of the CPU kernels (of any NaN
// only that it is one). One launch for linf, three for l2. Nothing waits for the device. Throws std::runtime_error
// where CUDA refuses a launch.
void pgd_step(const PgdStep& step, void* workspace, const Queue& queue);

}  // namespace lordfast::cuda
