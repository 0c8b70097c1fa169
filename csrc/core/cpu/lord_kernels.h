// What each instruction set's translation unit provides for LoRD. Plain pointers: these units and their callers share
// nothing else. Rows are `ld` elements apart. "Padded" arrays have zeros up to a multiple of kLordPad columns.
#pragma once

#include <cstddef>

namespace lordfast {

// Rows of the packed matrices are padded to this many floats, the widest vector.
constexpr size_t kLordPad = 16;
// The small dimension of `project` and `accumulate` is walked in steps of this.
constexpr size_t kLordGroup = 4;
// The gate takes this many tokens at a time, one a lane; the lanes of a sum have this length.
constexpr size_t kLordLanes = 16;

// Products of a tall matrix of some element type with a thin one in fp32; sums in fp32.
struct LordProducts {
    // out[m, j] = sum_k in[m, k] w[j, k].  w: (groups of rows, padded k).  out: (rows, ldo), ldo a multiple of the
    // group. Summed in runs of some 20 vectors: one sum over all of k would cost the gate's gradients their digits.
    void (*project)(const void* in, size_t ld, size_t rows, size_t k, const float* w, size_t ldw, size_t columns,
                    float* out, size_t ldo);
    // y[m, n] = (add ? y[m, n] : 0) + sum_j e[m, j] c[j, n], y read once and rounded once.  c: (terms, padded n).
    void (*update)(void* y, size_t ld, size_t rows, size_t n, const float* e, size_t lde, const float* c, size_t ldc,
                   size_t terms, bool add);
    // g[j, n] += sum_m e[m, j] in[m, n].  e: (rows, lde), lde a multiple of the group.  g: (columns, padded n).
    void (*accumulate)(float* g, size_t ldg, const float* e, size_t lde, size_t columns, const void* in, size_t ld,
                       size_t rows, size_t n);
};

struct LordGate {
    const float* p;   // (h, r), P = s W1 B
    const float* b1;  // (h,)
    const float* w2;  // (h,)
    float b2;
    size_t h, r;
};

// What the gate's backward pass reads and adds to; any of the last two may be null.
struct LordGateGrads {
    const float* u;       // (rows, r)
    const float* dlogit;  // (rows,)
    float* scratch;       // (2 r, kLordLanes)
    float* du;            // (rows, lddu): += da P
    size_t lddu;
    float* lanes;  // (h, r + 2, kLordLanes): += da u_0 ... da u_{r-1}, da, dlogit act(z), summed over every 16th row
};

struct LordKernels {
    LordProducts products[3];  // by DType
    // p[i, j] = sum_n w1[i, n] c[j, n], in double.  c: (columns, padded n).
    void (*fold)(const float* w1, size_t n, size_t rows, const float* c, size_t ldc, size_t columns, float* p);
    // logit[m] = w2 . act(P u[m] + b1) + b2, by Activation.  u: (rows, ldu).  scratch: (r, kLordLanes).
    void (*gate[3])(const LordGate&, const float* u, size_t ldu, size_t rows, float* scratch, float* logit);
    void (*gate_backward[3])(const LordGate&, const LordGateGrads&, size_t rows);
    void (*sigmoid)(const float* logit, float* lam, size_t count);
    // sums[i] += the sum of the i-th row of lanes, which becomes zero.
    void (*flush)(float* lanes, size_t rows, double* sums);
};

extern const LordKernels kLordPortable;
#ifdef LORDFAST_X86
extern const LordKernels kLordAvx2;
extern const LordKernels kLordAvx512;
extern const LordKernels kLordAvx512Bf16;
#endif

}  // namespace lordfast
