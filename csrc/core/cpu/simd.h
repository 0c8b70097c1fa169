// What the vector classes of the instruction sets share, and their interface. One class a header (simd_portable.h,
// simd_avx2.h, simd_avx512.h), each included only by translation units compiled for that instruction set:
//   Vec, kWidth                 a vector of kWidth floats; kWidth divides 16
//   zero, set, add, sub, mul, div, min, max    min and max return their second operand where either is NaN
//   fma(a, b, c)                a * b + c, rounded once where the instruction set can, twice where it can't
//   load(p), store(p, v)        from and to float, Bf16 or Fp16, any alignment, rounding to nearest even
//   above_zero(v, a, b)         v > 0 ? a : b
//   power_of_two(v)             2^n for v = 1.5 * 2^23 + n, |n| < 127: the low bits of v hold n
//   add_sums(out, a, b, c, d)   out[0..3] += the sums of the elements of a, b, c and d
//   Wide, zero_wide, load_wide(p), add_wide, fma_wide, sum_wide   kWidth / 2 doubles, loaded from floats
//   kRows, kColumns             the register tile: kRows * kColumns accumulators, kColumns + 1 other vectors
//
// Everything here has internal linkage: the linker must not take one unit's AVX-512 copy of a template for another's.
// For the same reason these units include no standard header that brings inline functions.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace lordfast {
namespace {

struct Bf16 {
    uint16_t bits;
};
struct Fp16 {
    uint16_t bits;
};

}  // namespace
}  // namespace lordfast
