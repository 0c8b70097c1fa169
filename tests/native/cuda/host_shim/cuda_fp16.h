// float16 on a CPU, by arithmetic rather than by bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

struct __half {
    uint16_t bits;
};

inline float __half2float(__half v) {
    const int exponent = v.bits >> 10 & 31, mantissa = v.bits & 1023;
    float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                               : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
    if (exponent == 31) {
        size = mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
    }
    return v.bits >> 15 ? -size : size;
}

inline __half __float2half_rn(float v) {
    const int sign = std::signbit(v) ? 0x8000 : 0;
    const float size = std::fabs(v);
    if (v != v) return {0x7fff};
    if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
    if (size == 0.0f) return {static_cast<uint16_t>(sign)};
    const int exponent = std::ilogb(size) < -14 ? -14 : std::ilogb(size);
    // In units of the last place, rounded to even. 2048 of them carry into the exponent by themselves.
    const int units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return {static_cast<uint16_t>(sign | (((exponent + 14) << 10) + units))};
}
