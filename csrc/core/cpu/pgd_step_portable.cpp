// Plain C++ for any CPU. A "vector" is one float; the loops are branch-free so that the compiler vectorises them for
// the baseline of the architecture (SSE2, NEON), the 16-bit conversions included.
#include "core/cpu/pgd_step_impl.h"

namespace lordfast {
namespace {

uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof(bits));
    return bits;
}

float float_of(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof(v));
    return v;
}

// Signed compares throughout: SSE2 has no unsigned one, and these values are below 2^31.
uint32_t select(bool condition, uint32_t a, uint32_t b) { return condition ? a : b; }

float fp16_to_float(uint16_t half) {
    const int32_t magnitude = half & 0x7fff;
    const uint32_t mantissa_in_place = static_cast<uint32_t>(magnitude) << 13;
    const uint32_t normal = mantissa_in_place + (112u << 23);      // the exponent's bias goes from 15 to 127
    const uint32_t inf_or_nan = mantissa_in_place + (224u << 23);  // and its top value from 31 to 255
    // Subnormal: m * 2^-24 = (0.5 + m * 2^-24) - 0.5, where the sum is just m in the mantissa of 0.5.
    const uint32_t subnormal = bits_of(float_of((126u << 23) | static_cast<uint32_t>(magnitude)) - 0.5f);
    const uint32_t finite = select(magnitude < 0x0400, subnormal, normal);
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    return float_of(sign | select(magnitude >= 0x7c00, inf_or_nan, finite));
}

uint16_t float_to_fp16(float v) {
    const uint32_t bits = bits_of(v);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const int32_t ordered = static_cast<int32_t>(magnitude);
    // Normal: rebase the exponent, add just under half a unit, one more if odd. A carry into the exponent is right,
    // also the one to infinity.
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal: 0.5 has the unit of fp16's subnormals, 2^-24, so the addition rounds to it.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - (126u << 23);
    const uint32_t special = select(ordered > 0x7f800000, 0x7e00u, 0x7c00u);
    const uint32_t finite = select(ordered < 0x38800000, subnormal, normal);
    return static_cast<uint16_t>(((bits >> 16) & 0x8000u) | select(ordered >= 0x47800000, special, finite));
}

uint16_t float_to_bf16(float v) {
    const uint32_t bits = bits_of(v);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<uint16_t>(select(v != v, 0x7fc0u, rounded));
}

struct Portable {
    using Vec = float;
    static constexpr size_t kWidth = 1;

    static Vec set(float v) { return v; }
    static Vec add(Vec a, Vec b) { return a + b; }
    static Vec sub(Vec a, Vec b) { return a - b; }
    static Vec mul(Vec a, Vec b) { return a * b; }

    static Vec load(const float* p) { return *p; }
    static Vec load(const Bf16* p) { return float_of(static_cast<uint32_t>(p->bits) << 16); }
    static Vec load(const Fp16* p) { return fp16_to_float(p->bits); }
    static void store(float* p, Vec v) { *p = v; }
    static void store(Bf16* p, Vec v) { p->bits = float_to_bf16(v); }
    static void store(Fp16* p, Vec v) { p->bits = float_to_fp16(v); }

    static Vec sign(Vec g) { return (g > 0.0f ? 1.0f : 0.0f) - (g < 0.0f ? 1.0f : 0.0f); }
    static Vec clamp(Vec v, Vec lo, Vec hi) {
        const float above = v > lo ? v : lo;
        const float inside = above < hi ? above : hi;
        const bool nan = (v != v) | (lo != lo) | (hi != hi);
        return nan ? __builtin_nanf("") : inside;
    }
    static Vec clamp_fixed(Vec v, Vec lo, Vec hi) {
        const float above = lo > v ? lo : v;
        return hi < above ? hi : above;
    }

    struct Acc {
        double lane[kLanes] = {};

        void add_squares(Vec v, size_t j) { lane[j] += static_cast<double>(v) * static_cast<double>(v); }
        double sum() const {
            double total = 0.0;
            for (size_t j = 0; j < kLanes; ++j) total += lane[j];
            return total;
        }
    };
};

}  // namespace

constexpr PgdKernels kPgdPortable[3] = {kernels_for<Portable, float>(), kernels_for<Portable, Bf16>(),
                                        kernels_for<Portable, Fp16>()};

}  // namespace lordfast
