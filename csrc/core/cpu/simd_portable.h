// Vectors of 16 bytes in the language that GCC and Clang share, for any CPU: they compile it to the baseline of the
// architecture (SSE2, NEON), the 16-bit conversions included. The interface is in simd.h.
#pragma once

#include "core/cpu/simd.h"

namespace lordfast {
namespace {

struct SimdPortable {
    using Vec = float __attribute__((vector_size(16)));
    using Int = int32_t __attribute__((vector_size(16)));  // also what comparisons give: 0 or -1
    using Bits = uint32_t __attribute__((vector_size(16)));
    using Half = uint16_t __attribute__((vector_size(8)));
    static constexpr size_t kWidth = 4, kRows = 2, kColumns = 4;

    static Vec zero() { return Vec{}; }
    static Vec set(float v) { return Vec{v, v, v, v}; }
    static Vec add(Vec a, Vec b) { return a + b; }
    static Vec sub(Vec a, Vec b) { return a - b; }
    static Vec mul(Vec a, Vec b) { return a * b; }
    static Vec div(Vec a, Vec b) { return a / b; }
    static Vec min(Vec a, Vec b) { return select(a < b, a, b); }
    static Vec max(Vec a, Vec b) { return select(a > b, a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }

    static Vec load(const float* p) { return read<Vec>(p); }
    static Vec load(const Bf16* p) { return as_float(__builtin_convertvector(read<Half>(p), Int) << 16); }
    static Vec load(const Fp16* p) {
        const Int half = __builtin_convertvector(read<Half>(p), Int);
        const Int magnitude = half & 0x7fff, in_place = magnitude << 13;
        const Int normal = in_place + (112 << 23);      // the exponent's bias goes from 15 to 127
        const Int inf_or_nan = in_place + (224 << 23);  // and its top value from 31 to 255
        // Subnormal: m * 2^-24 = (0.5 + m * 2^-24) - 0.5, where the sum is just m in the mantissa of 0.5.
        const Int subnormal = as_int(as_float((126 << 23) | magnitude) - set(0.5f));
        const Int finite = select(magnitude < 0x0400, subnormal, normal);
        return as_float((half & 0x8000) << 16 | select(magnitude >= 0x7c00, inf_or_nan, finite));
    }

    static void store(float* p, Vec v) { memcpy(p, &v, sizeof(v)); }
    static void store(Bf16* p, Vec v) {
        const Bits bits = read<Bits>(&v), rounded = bits + 0x7fff + ((bits >> 16) & 1);
        write_halves(p, select(v != v, splat(0x7fc00000), read<Int>(&rounded)) >> 16);
    }
    static void store(Fp16* p, Vec v) {
        const Int bits = as_int(v), magnitude = bits & 0x7fffffff;
        // Normal: rebase the exponent, add just under half a unit, one more if odd. A carry into the exponent is right,
        // also the one to infinity.
        const Int normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        // Subnormal: 0.5 has the unit of fp16's subnormals, 2^-24, so the addition rounds to it.
        const Int subnormal = as_int(as_float(magnitude) + set(0.5f)) - (126 << 23);
        const Int special = select(magnitude > 0x7f800000, splat(0x7e00), splat(0x7c00));
        const Int finite = select(magnitude < 0x38800000, subnormal, normal);
        write_halves(p, ((bits >> 16) & 0x8000) | select(magnitude >= 0x47800000, special, finite));
    }

    static Vec above_zero(Vec v, Vec a, Vec b) { return select(v > Vec{}, a, b); }
    static Vec power_of_two(Vec v) {
        const Bits bits = (read<Bits>(&v) << 23) + (127u << 23);
        return read<Vec>(&bits);
    }
    static void add_sums(float* out, Vec a, Vec b, Vec c, Vec d) {
        const Vec ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const Vec cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
        const Vec sums = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
        store(out, load(out) + sums);
    }

    using Wide = double __attribute__((vector_size(16)));
    static Wide zero_wide() { return Wide{}; }
    static Wide load_wide(const float* p) {
        using Pair = float __attribute__((vector_size(8)));
        return __builtin_convertvector(read<Pair>(p), Wide);
    }
    static Wide add_wide(Wide a, Wide b) { return a + b; }
    static Wide fma_wide(Wide a, Wide b, Wide c) { return a * b + c; }
    static double sum_wide(Wide v) { return v[0] + v[1]; }

    // Of the bits, not a ?: on vectors, which Clang has only for its own vector types.
    static Int select(Int mask, Int a, Int b) { return (mask & a) | (~mask & b); }
    static Vec select(Int mask, Vec a, Vec b) { return as_float(select(mask, as_int(a), as_int(b))); }

  private:
    template <class V>
    static V read(const void* p) {
        V v;
        memcpy(&v, p, sizeof(v));
        return v;
    }
    static Int as_int(Vec v) { return read<Int>(&v); }
    static Vec as_float(Int v) { return read<Vec>(&v); }
    static Int splat(int32_t v) { return Int{v, v, v, v}; }
    // The low halves of the four elements.
    static void write_halves(void* p, Int v) {
        const Half halves = __builtin_convertvector(v, Half);
        memcpy(p, &halves, sizeof(halves));
    }
};

}  // namespace
}  // namespace lordfast
