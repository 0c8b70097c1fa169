#include <immintrin.h>

#include "core/cpu/pgd_step_impl.h"

namespace lordfast {
namespace {

struct Avx512 {
    using Vec = __m512;
    static constexpr size_t kWidth = 16;

    static Vec set(float v) { return _mm512_set1_ps(v); }
    static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
    static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
    static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }

    static Vec load(const float* p) { return _mm512_loadu_ps(p); }
    static Vec load(const Bf16* p) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(p)), 16));
    }
    static Vec load(const Fp16* p) { return _mm512_cvtph_ps(load16(p)); }

    static void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
    // Integer arithmetic, not the BF16 extension: its conversion flushes subnormals to zero.
    static void store(Bf16* p, Vec v) {
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        const __m512i result = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
        store16(p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16)));
    }
    static void store(Fp16* p, Vec v) { store16(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }

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

  private:
    static __m256i load16(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static void store16(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
};

}  // namespace

constexpr PgdKernels kPgdAvx512[3] = {kernels_for<Avx512, float>(), kernels_for<Avx512, Bf16>(),
                                      kernels_for<Avx512, Fp16>()};

}  // namespace lordfast
