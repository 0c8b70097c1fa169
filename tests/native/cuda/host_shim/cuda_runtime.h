// The part of CUDA's C++ that lordfast's kernels are written in, for a C++ compiler and fibres.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "fibres.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block runs at a time, so one copy will do; fibres.cpp says why it is thread-local.
#ifdef __SANITIZE_ADDRESS__
#    define __shared__ static
#else
#    define __shared__ static thread_local
#endif

struct dim3 {
    unsigned x, y = 1, z = 1;
    constexpr explicit dim3(unsigned x_ = 1) : x(x_) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
    float x, y, z, w;
};

#define __syncthreads() shim::block_barrier(__FILE__, __LINE__)

// All 32 lanes or none: the only mask that the kernels use.
template <class T>
T __shfl_xor_sync(unsigned, T value, int with) {
    T got;
    std::memcpy(&got, shim::exchange(&value, sizeof(T), shim::lane() ^ with), sizeof(T));
    return got;
}

// Needs -ffp-contract=off, as the definition of these says.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __int_as_float(int bits) {
    float v;
    std::memcpy(&v, &bits, sizeof(v));
    return v;
}

template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}
