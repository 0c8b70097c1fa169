// How a block of the streaming kernels is laid out, and what they share. Eight lanes read a run of 8 packs (128 bytes)
// of one row, so that a warp reads four rows at once: with SD1.5's widths (320, 640, 1280) no lane is ever idle, as it
// would be with 32 lanes a row.
#pragma once

#include "core/cuda/element.cuh"
#include "core/cuda/launch.h"
#include "core/cuda/lord_kernels.h"

namespace lordfast::cuda {
namespace {

constexpr int kThreads = 256;
// On a multiprocessor, so that one reads while another waits: 128 registers a thread. Without it, the compiler may
// spill some to make room for three.
constexpr int kBlocksEach = 2;
constexpr int kWarps = kThreads / 32;
constexpr int kGroup = 8;                   // lanes on one row
constexpr int kGroups = kThreads / kGroup;  // rows that a block reads at once
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
constexpr int kRun = kGroup * kPack<T>;  // elements that a group reads at once

struct Lane {
    int warp, group, column;  // group: of the warp's four; column: within the group

    __device__ Lane()
        : warp(static_cast<int>(threadIdx.x) / 32),
          group(static_cast<int>(threadIdx.x) % 32 / kGroup),
          column(static_cast<int>(threadIdx.x) % kGroup) {}
    __device__ int row() const { return warp * (32 / kGroup) + group; }  // of kGroups
};

// The sum over a group's lanes, in all of them.
__device__ inline float group_sum(float v) {
#pragma unroll
    for (int step = kGroup / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
    return v;
}

// Of a double or float over the block's threads, for thread 0. All threads must call; ends with the block in step.
template <class V>
__device__ inline V block_sum(V v) {
    __shared__ V of_warp[kWarps];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
    __syncthreads();
    V total = 0;
    if (threadIdx.x == 0) {
        for (int w = 0; w < kWarps; ++w) total += of_warp[w];
    }
    __syncthreads();
    return total;
}

// Where element k of a row stands in shared memory: the four-element pieces that a group's lanes read together stand
// together, so that they lie in different banks.
template <int kSize>
__device__ inline int place(int k) {
    constexpr int run = kGroup * kSize;
    const int lane = k / kSize % kGroup, element = k % kSize;
    return k / run * run + element / 4 * (4 * kGroup) + lane * 4 + element % 4;
}

// A lane's pack of the `run`-th run of such a row.
template <int kSize>
__device__ inline void read_placed(const float* row, int run, int column, float (&to)[kSize]) {
#pragma unroll
    for (int q = 0; q < kSize / 4; ++q) {
        const float4 four = *reinterpret_cast<const float4*>(row + run * kGroup * kSize + q * 4 * kGroup + column * 4);
        to[4 * q] = four.x, to[4 * q + 1] = four.y, to[4 * q + 2] = four.z, to[4 * q + 3] = four.w;
    }
}

// Four more floats a row: rows start in different banks, and on 16 bytes still.
__host__ __device__ constexpr int padded(int depth) { return depth + 4; }

// Columns c0 .. of a thin matrix, up to kDepth of its depth from k0 on, in whole runs of packs of kSize, placed; zeros
// outside the matrix.
template <int kSize, int kColumns, int kDepth>
__device__ inline void stage_thin(const ThinMatrix& thin, int c0, int64_t k0, int64_t depth,
                                  float (&tile)[kColumns][padded(kDepth)]) {
    constexpr int run = kGroup * kSize;
    const int extent = static_cast<int>(min(int64_t{kDepth}, ceil_div(depth - k0, run) * run));
    for (int i = threadIdx.x; i < kColumns * kDepth; i += kThreads) {
        // Along what is contiguous in memory.
        const bool deep = thin.depth_stride == 1;
        const int c = deep ? i / kDepth : i % kColumns, k = deep ? i % kDepth : i / kColumns;
        if (k >= extent) continue;
        float value = 0.0f;
        if (c0 + c < thin.columns && k0 + k < depth) {
            const bool in_first = c0 + c < thin.split;
            const float* from = in_first ? thin.first : thin.second;
            const int column = in_first ? c0 + c : c0 + c - thin.split;
            value = thin.scaling * from[column * thin.column_stride + (k0 + k) * thin.depth_stride];
        }
        tile[c][place<kSize>(k)] = value;
    }
}

__device__ inline float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

__device__ inline float thin_row(const ThinRows& thin, int64_t row, int c) {
    const bool in_first = c < thin.split;
    const float value = thin.rows[row * thin.split + (in_first ? c : c - thin.split)];
    if (in_first) return value;
    // The division takes longer than all the rest; most gates are per token.
    return sigmoid(thin.logit[thin.tokens == 1 ? row : row / thin.tokens]) * value;
}

}  // namespace
}  // namespace lordfast::cuda
