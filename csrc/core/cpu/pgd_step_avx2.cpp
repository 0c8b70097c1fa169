#include <immintrin.h>

#include "core/cpu/pgd_step_impl.h"

namespace lordfast {
namespace {

struct Avx2 {
    using Vec = __m256;
    static constexpr size_t kWidth = 8;

    static Vec set(float v) { return _mm256_set1_ps(v); }
    static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
    static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
    static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }

    static Vec load(const float* p) { return _mm256_loadu_ps(p); }
    static Vec load(const Bf16* p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
    }
    static Vec load(const Fp16* p) { return _mm256_cvtph_ps(load16(p)); }

    static void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
    static void store(Bf16* p, Vec v) {
        const __m256i bits = _mm256_castps_si256(v);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
        const __m256i quiet = _mm256_set1_epi32(0x7fc00000);
        const __m256i result = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan)), 16);
        store16(p, _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1)));
    }
    static void store(Fp16* p, Vec v) { store16(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }

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

  private:
    static __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
    static void store16(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
};

}  // namespace

constexpr PgdKernels kPgdAvx2[3] = {kernels_for<Avx2, float>(), kernels_for<Avx2, Bf16>(), kernels_for<Avx2, Fp16>()};

}  // namespace lordfast
