#include "core/cpu/pgd_step_impl.h"
#include "core/cpu/simd_avx512.h"

namespace lordfast {
namespace {

struct Avx512 : SimdAvx512 {
    static Vec sign(Vec g) {
        const __m512 zero = _mm512_setzero_ps();
        const __mmask16 above = _mm512_cmp_ps_mask(g, zero, _CMP_GT_OQ),
                        below = _mm512_cmp_ps_mask(g, zero, _CMP_LT_OQ);
        return _mm512_mask_mov_ps(_mm512_maskz_mov_ps(above, set(1.0f)), below, set(-1.0f));
    }
    // max and min return their second operand for a tie and where either is NaN.
    static Vec clamp(Vec v, Vec lo, Vec hi) {
        const __m512 inside = _mm512_min_ps(_mm512_max_ps(v, lo), hi);
        const __mmask16 nan = _mm512_cmp_ps_mask(v, lo, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(hi, hi, _CMP_UNORD_Q);
        return _mm512_mask_mov_ps(inside, nan, set(__builtin_nanf("")));
    }
    static Vec clamp_fixed(Vec v, Vec lo, Vec hi) { return _mm512_min_ps(hi, _mm512_max_ps(lo, v)); }

    struct Acc {
        __m512d lane[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};

        void add_squares(Vec v, size_t) {
            const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
            const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
            // The product of two floats is exact in double, so fused and separate give the same bits.
            lane[0] = _mm512_fmadd_pd(low, low, lane[0]);
            lane[1] = _mm512_fmadd_pd(high, high, lane[1]);
        }
        double sum() const {
            double lanes[kLanes], total = 0.0;
            for (size_t k = 0; k < 2; ++k) _mm512_storeu_pd(lanes + 8 * k, lane[k]);
            for (size_t j = 0; j < kLanes; ++j) total += lanes[j];
            return total;
        }
    };
};

}  // namespace

constexpr PgdKernels kPgdAvx512[3] = {kernels_for<Avx512, float>(), kernels_for<Avx512, Bf16>(),
                                      kernels_for<Avx512, Fp16>()};

}  // namespace lordfast
