// What each instruction set's translation unit offers for pgd_step: functions on one run of elements, one thread.
#pragma once

#include <cstddef>

namespace lordfast {

// Elements of one sample are reduced in chunks of this size, each into 16 double lanes (element i into lane i % 16),
// the lanes and then the chunks added in order. Part of the definition of the result's bits, so the same everywhere.
constexpr size_t kPgdChunk = 4096;

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

struct PgdKernels {
    void (*linf)(const void* x_adv, const void* x_orig, const void* grad, void* out, size_t n, const LinfParams&);
    // Sum of squares of the gradient; n <= kPgdChunk.
    double (*l2_grad)(const void* grad, size_t n);
    // Sum of squares of the perturbation after the step; n <= kPgdChunk.
    double (*l2_dist)(const void* x_adv, const void* x_orig, const void* grad, size_t n, const L2Params&);
    void (*l2_write)(const void* x_adv, const void* x_orig, const void* grad, void* out, size_t n, const L2Params&,
                     float shrink);
};

// Indexed by DType.
extern const PgdKernels kPgdPortable[3];
#ifdef LORDFAST_X86
extern const PgdKernels kPgdAvx2[3];
extern const PgdKernels kPgdAvx512[3];
#endif

}  // namespace lordfast
