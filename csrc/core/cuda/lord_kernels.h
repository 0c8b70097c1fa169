// The steps that lord_forward and lord_backward are made of: what each reads and writes. One file a step, none waits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/cuda/lord.h"

namespace lordfast::cuda {

// A thin matrix of `columns` columns and any depth, given by two of the parameters:
// (c, k) -> scaling * (c < split ? first[c * column_stride + k * depth_stride] : second[...c - split...]).
struct ThinMatrix {
    const float *first, *second;
    int64_t column_stride, depth_stride;
    int split, columns;
    float scaling;
};

// A thin row for each row of a wide matrix: [t, lambda t] with t = rows[row], or t alone where logit is null.
struct ThinRows {
    const float* rows;   // (m, split)
    const float* logit;  // (m / tokens,), or null
    int64_t tokens;
    int split, columns;
};

// P = scaling * W1 B, summed in double; stored (rank, hidden), which the gate reads along hidden.
struct Fold {
    const float *w1, *b;
    float* p;
    int64_t n;
    int rank, hidden;
    float scaling;
};

struct GateForward {
    const float *p, *b1, *w2, *b2;
    float* logit;  // (m,), or null: no gate
    int hidden;
    Activation activation;
};

// out = wide thin^T, (m, columns). Then the gate on out's rows, where one is given, and the fold in blocks of its own
// beside the product, where one is given (the gate must not need it).
struct Down {
    const void* wide;  // (m, depth)
    float* out;
    int64_t m, depth;
    ThinMatrix thin;
    GateForward gate;
    Fold fold;
};

// wide (+)= rows thin.
struct Update {
    void* wide;  // (m, width)
    int64_t m, width;
    ThinRows rows;
    ThinMatrix thin;  // its depth is width
    bool accumulate;
};

// A part of rows^T wide for each run of rows: partials (splits, columns, width).
struct Outer {
    const void* wide;  // (m, width)
    int64_t m, width;
    ThinRows rows;
    int64_t splits, rows_per_split;
    float* partials;
};

// Per block, in double: dP (hidden, rank), db1, dw2 (hidden,), db2.
struct GatePartials {
    double* values;  // (blocks, count())
    int64_t blocks;
    int rank, hidden;

    __host__ __device__ int64_t fold_count() const { return static_cast<int64_t>(rank) * hidden; }
    __host__ __device__ int64_t count() const { return fold_count() + 2 * static_cast<int64_t>(hidden) + 1; }
};

// The partials added up; null pointers are not wanted.
struct GateSums {
    GatePartials partials;
    float *dp, *b1, *w2, *b2;
};

struct GateBackward {
    const float* v;           // (m, 2 rank): dY C, or null for zeros
    const float* u;           // (m, rank)
    const float* logit;       // (m / tokens,)
    const float* grad_logit;  // as logit, or null
    const float* dlogit;      // of each row of a sample, (m / tokens,); null: from v, u and logit
    const float *p, *b1, *w2;
    float* du;  // (m, rank), or null
    int64_t m, tokens;
    int rank, hidden;
    Activation activation;
    int64_t blocks;
    bool wants_fold;
    GatePartials partials;  // values null: not wanted
};

struct SampleBackward {
    const float *v, *u, *logit, *grad_logit;  // as in GateBackward
    float* dlogit;                            // (batch,)
    int64_t batch, tokens;
    int rank;
};

struct Reduce {
    int64_t k, n;
    int rank, hidden;
    float scaling;
    const float *outer_a, *outer_b;  // partials of du^T x (splits_a, rank, k), [u, lambda u]^T dY (splits_b, 2 rank, n)
    int64_t splits_a, splits_b;
    const float *w1, *b_parameter, *dp;
    float *a, *b, *b_adv, *w1_grad;  // null: not wanted
};

int64_t outer_splits(int64_t m, int64_t width, int columns, DType dtype);
int64_t gate_backward_blocks(int64_t m, bool partials);

void launch_fold(const Fold& fold, const Queue& queue);
void launch_down(DType dtype, const Down& down, const Queue& queue);
void launch_sample_mean(const float* token_logit, float* logit, int64_t batch, int64_t tokens, const Queue& queue);
void launch_update(DType dtype, const Update& update, const Queue& queue);
void launch_sample_backward(const SampleBackward& call, const Queue& queue);
void launch_gate_backward(const GateBackward& call, const Queue& queue);
// Either product may be absent (splits 0), and the sums too (values null).
void launch_outer(DType dtype, const Outer& a, const Outer& b, const GateSums& sums, const Queue& queue);
void launch_reduce(const Reduce& call, const Queue& queue);

}  // namespace lordfast::cuda
