// AVX-512 F, BW, DQ and VL; the interface is in simd.h.
#pragma once

#include <immintrin.h>

#include "core/cpu/simd.h"

namespace lordfast {
namespace {

struct SimdAvx512 {
    using Vec = __m512;
    static constexpr size_t kWidth = 16, kRows = 4, kColumns = 4;

    static Vec zero() { return _mm512_setzero_ps(); }
    static Vec set(float v) { return _mm512_set1_ps(v); }
    static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
    static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
    static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
    static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
    static Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
    static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }

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

    static Vec above_zero(Vec v, Vec a, Vec b) {
        return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ), a);
    }
    static Vec power_of_two(Vec v) {
        const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(v), 23);
        return _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)));
    }
    static void add_sums(float* out, Vec a, Vec b, Vec c, Vec d) {
        // Pairs within the 128-bit quarters, so that each quarter holds a part of all four sums; then the quarters.
        const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        const __m512 quarters = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
        const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
        const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
        _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
    }

    using Wide = __m512d;
    static Wide zero_wide() { return _mm512_setzero_pd(); }
    static Wide load_wide(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
    static Wide add_wide(Wide a, Wide b) { return _mm512_add_pd(a, b); }
    static Wide fma_wide(Wide a, Wide b, Wide c) { return _mm512_fmadd_pd(a, b, c); }
    static double sum_wide(Wide v) { return _mm512_reduce_add_pd(v); }

  private:
    static __m256i load16(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static void store16(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
};

}  // namespace
}  // namespace lordfast
