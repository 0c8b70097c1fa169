// AVX2 with FMA and F16C; the interface is in simd.h.
#pragma once

#include <immintrin.h>

#include "core/cpu/simd.h"

namespace lordfast {
namespace {

struct SimdAvx2 {
    using Vec = __m256;
    static constexpr size_t kWidth = 8, kRows = 2, kColumns = 4;

    static Vec zero() { return _mm256_setzero_ps(); }
    static Vec set(float v) { return _mm256_set1_ps(v); }
    static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
    static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
    static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
    static Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
    static Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
    static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

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

    static Vec above_zero(Vec v, Vec a, Vec b) {
        return _mm256_blendv_ps(b, a, _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ));
    }
    static Vec power_of_two(Vec v) {
        const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(v), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)));
    }
    static void add_sums(float* out, Vec a, Vec b, Vec c, Vec d) {
        const __m256 quarters = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(quarters), _mm256_extractf128_ps(quarters, 1));
        _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
    }

    using Wide = __m256d;
    static Wide zero_wide() { return _mm256_setzero_pd(); }
    static Wide load_wide(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
    static Wide add_wide(Wide a, Wide b) { return _mm256_add_pd(a, b); }
    static Wide fma_wide(Wide a, Wide b, Wide c) { return _mm256_fmadd_pd(a, b, c); }
    static double sum_wide(Wide v) {
        const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
        return _mm_cvtsd_f64(pair) + _mm_cvtsd_f64(_mm_unpackhi_pd(pair, pair));
    }

  private:
    static __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
    static void store16(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
};

}  // namespace
}  // namespace lordfast
