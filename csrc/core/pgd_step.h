// One step of projected gradient descent on a batch of images, on the CPU. Framework-free: raw pointers and sizes.
#pragma once

#include <cstdint>

#include "core/cpu/isa.h"
#include "core/dtype.h"

namespace lordfast {

enum class Norm { linf, l2 };

struct PgdStep {
    const void* x_adv;   // (batch, numel), contiguous, as are the other three
    const void* x_orig;  // (batch, numel)
    const void* grad;    // (batch, numel)
    void* out;           // (batch, numel); may be x_adv itself, no other overlap
    int64_t batch;
    int64_t numel;  // of one sample
    DType dtype;    // of all four
    Norm norm;
    float step_size;
    float eps;
    float low;
    float high;
    float direction;  // +1 ascends, -1 descends
};

// linf:  out = clamp(clamp(x_adv + direction * step_size * sign(grad), x_orig - eps, x_orig + eps), low, high)
// l2:    per sample, d = x_adv + direction * step_size * grad / ||grad|| - x_orig, scaled onto the ball ||d|| <= eps,
//        out = clamp(x_orig + d, low, high). A gradient whose norm is zero or not finite moves nothing.
//
// Elements are read as fp32, computed in fp32 and rounded once, to nearest even. A NaN gradient element has sign 0; a
// NaN in an image stays a NaN. The norms are sums in double over chunks of a sample, in an order that depends on numel
// alone: the bits are the same for every number of threads, every batch size and every instruction set. In a 16-bit
// dtype the result can leave the ball by that final rounding, and only by it.
//
// linf reads and writes each element once and allocates nothing. l2 takes three passes: two norms, one write.
void pgd_step(const PgdStep& step, Isa isa, int threads);

}  // namespace lordfast
