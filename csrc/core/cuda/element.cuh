// Elements of float, bfloat16 and float16 arrays: conversions that round to nearest even, and 16-byte accesses.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/cuda/ceil_div.h"
#include "core/dtype.h"

namespace lordfast::cuda {

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float to_float(__half v) { return __half2float(v); }

__device__ inline void from_float(float& to, float v) { to = v; }
__device__ inline void from_float(__nv_bfloat16& to, float v) { to = __float2bfloat16_rn(v); }
__device__ inline void from_float(__half& to, float v) { to = __float2half_rn(v); }

// What a thread reads or writes at once: 16 bytes.
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <class T>
struct alignas(16) Pack {
    T element[kPack<T>];
};

__host__ __device__ inline bool on_16_bytes(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

// The first `valid` of kPack<T> elements from p on, the others 0. `aligned`: p is on a 16-byte boundary.
template <class T>
__device__ inline void load_pack(const T* p, int valid, bool aligned, float (&to)[kPack<T>]) {
    if (aligned && valid == kPack<T>) {
        const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(p);
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) to[e] = to_float(pack.element[e]);
    } else {
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) to[e] = e < valid ? to_float(p[e]) : 0.0f;
    }
}

template <class T>
__device__ inline void store_pack(T* p, int valid, bool aligned, const float (&from)[kPack<T>]) {
    if (aligned && valid == kPack<T>) {
        Pack<T> pack;
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) from_float(pack.element[e], from[e]);
        *reinterpret_cast<Pack<T>*>(p) = pack;
    } else {
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) {
            if (e < valid) from_float(p[e], from[e]);
        }
    }
}

// Calls f with a null pointer of the element type: f(static_cast<T*>(nullptr)).
template <class F>
void with_type(DType dtype, const F& f) {
    switch (dtype) {
        case DType::float32:
            return f(static_cast<float*>(nullptr));
        case DType::bfloat16:
            return f(static_cast<__nv_bfloat16*>(nullptr));
        case DType::float16:
            return f(static_cast<__half*>(nullptr));
    }
}

}  // namespace lordfast::cuda
