// LoRD's forward and backward (Eq. 4-5) around a base product that is somebody else's, on the CPU. Framework-free: raw
// pointers and sizes.
#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/cpu/isa.h"
#include "core/dtype.h"

namespace lordfast {

// What both directions read. All arrays are contiguous; M = batch * tokens.
struct LordProblem {
    int64_t batch, tokens;  // one sample's tokens share a lambda where per_sample
    int64_t k, n, r, h;     // r, h at least 1
    DType dtype;            // of x, y and their gradients; everything else is fp32
    bool per_sample;
    Activation activation;
    float scaling;       // s
    const float* a;      // (r, k)
    const float* b;      // (n, r)
    const float* b_adv;  // (n, r)
    const float* w1;     // (h, n)
    const float* b1;     // (h,)
    const float* w2;     // (h,)
    const float* b2;     // ()
};

struct LordForward {
    const void* x;  // (M, k)
    void* y;        // (M, n): x W^T + bias where has_base, and then added to; else written
    bool has_base;
    float* gate_logit;  // (M,), or (batch,) where per_sample
    float* u;           // (M, r)
};

struct LordBackward {
    const void* grad_y;       // (M, n), or null
    const float* grad_logit;  // as gate_logit, or null
    const void* x;            // (M, k); null where da is
    const float* gate_logit;
    const float* u;  // (M, r)
    // The gradients to write, each like what it belongs to, or null where nobody wants it.
    void* dx;  // dY W where has_base, and then added to
    bool has_base;
    float *da, *db, *db_adv, *dw1, *db1, *dw2, *db2;
};

// u, the gate and all sums are fp32 (the fold P = s W1 B and its gradient double) whatever the dtype; y and dx are
// rounded once. The sums over M run over chunks whose number depends on M alone, added in order: the bits do not depend
// on the number of threads. They do depend on the instruction set. Scratch is allocated once a call: std::bad_alloc.
void lord_forward(const LordProblem& problem, const LordForward& io, Isa isa, int threads);
void lord_backward(const LordProblem& problem, const LordBackward& io, Isa isa, int threads);

}  // namespace lordfast
