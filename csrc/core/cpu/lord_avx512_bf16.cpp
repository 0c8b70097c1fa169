#include "core/cpu/lord_unit.h"
#include "core/cpu/simd_avx512.h"

namespace lordfast {
namespace {

struct Avx512Bf16 : SimdAvx512 {
    using SimdAvx512::store;
    // Rounds like the integer arithmetic that it replaces, but flushes subnormals (below 1.2e-38) to zero.
    static void store(Bf16* p, Vec v) {
        const __m256bh rounded = _mm512_cvtneps_pbh(v);
        memcpy(p, &rounded, sizeof(rounded));
    }
};

}  // namespace

constexpr LordKernels kLordAvx512Bf16 = lord_kernels<Avx512Bf16>();

}  // namespace lordfast
