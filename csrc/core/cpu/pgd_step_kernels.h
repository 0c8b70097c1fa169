// What each instruction set's translation unit offers for pgd_step: functions on one run of elements, one thread.
#pragma once

#include <cstddef>

#include "core/pgd_params.h"

namespace lordfast {

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
