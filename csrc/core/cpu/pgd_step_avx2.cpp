#include "core/cpu/pgd_step_impl.h"
#include "core/cpu/simd_avx2.h"

namespace lordfast {
namespace {

struct Avx2 : SimdAvx2 {
    static Vec sign(Vec g) {
        const __m256 zero = _mm256_setzero_ps();
        const __m256 above = _mm256_and_ps(_mm256_cmp_ps(g, zero, _CMP_GT_OQ), set(1.0f));
        return _mm256_or_ps(above, _mm256_and_ps(_mm256_cmp_ps(g, zero, _CMP_LT_OQ), set(-1.0f)));
    }
    // max and min return their second operand for a tie and where either is NaN.
    static Vec clamp(Vec v, Vec lo, Vec hi) {
        const __m256 inside = _mm256_min_ps(_mm256_max_ps(v, lo), hi);
        const __m256 nan = _mm256_or_ps(_mm256_cmp_ps(v, lo, _CMP_UNORD_Q), _mm256_cmp_ps(hi, hi, _CMP_UNORD_Q));
        return _mm256_blendv_ps(inside, set(__builtin_nanf("")), nan);
    }
    static Vec clamp_fixed(Vec v, Vec lo, Vec hi) { return _mm256_min_ps(hi, _mm256_max_ps(lo, v)); }

    struct Acc {
        __m256d lane[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};

        void add_squares(Vec v, size_t j) {
            const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
            const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
            // The product of two floats is exact in double, so fused and separate give the same bits.
            lane[j / 4] = _mm256_fmadd_pd(low, low, lane[j / 4]);
            lane[j / 4 + 1] = _mm256_fmadd_pd(high, high, lane[j / 4 + 1]);
        }
        double sum() const {
            double lanes[kLanes], total = 0.0;
            for (size_t k = 0; k < 4; ++k) _mm256_storeu_pd(lanes + 4 * k, lane[k]);
            for (size_t j = 0; j < kLanes; ++j) total += lanes[j];
            return total;
        }
    };
};

}  // namespace

constexpr PgdKernels kPgdAvx2[3] = {kernels_for<Avx2, float>(), kernels_for<Avx2, Bf16>(), kernels_for<Avx2, Fp16>()};

}  // namespace lordfast
