// rows^T wide, the sums over tokens behind the gradients of A, B and B': du^T x and [u, lambda u]^T dY.
//
// Reads M N elements once, x and dY 21 MB together for M = 16384, K = N = 320 in bf16, 4.9 us at 4.3 TB/s; where the
// base layer's own products have just read them and they fit, out of L2. This is the second time that a backward pass
// reads dY (the first is v = dY C). One kernel for both would have to keep both sums in registers, or write its part of
// dC for every few rows of which it has whole ones in sight: at r = 4, N = 1280 as many bytes as dY itself, at r = 64
// sixteen times as many. Here a block takes 128 bytes of each row and 8 columns for a long run of rows, and writes its
// part once. Both products are one launch, and so are the sums of the gate's partial gradients, in blocks beside them.
//
// How many runs the rows are cut into depends on the sizes alone, never on the device: the same bits everywhere.
#include <algorithm>

#include "core/cuda/lord_block.cuh"

namespace lordfast::cuda {
namespace {

constexpr int kColumns = 8;     // of the thin rows in registers
constexpr int kTileRows = 128;  // of the thin rows in shared memory
constexpr int64_t kBlocks = 256;

template <class T>
__device__ void outer_block(const Outer& outer, int64_t block) {
    constexpr int kSize = kPack<T>;
    __shared__ __align__(16) float rows[kTileRows][kColumns];
    __shared__ float sums[kWarps][kColumns][kRun<T>];
    const int columns = outer.rows.columns;
    const int64_t wide_tiles = ceil_div(outer.width, kRun<T>), thin_tiles = ceil_div(columns, kColumns);
    const Lane lane;
    const int64_t k0 = block % wide_tiles * kRun<T>, k = k0 + lane.column * kSize;
    const int c0 = static_cast<int>(block / wide_tiles % thin_tiles) * kColumns;
    const int64_t split = block / (wide_tiles * thin_tiles);
    const int64_t begin = split * outer.rows_per_split, end = min(outer.m, begin + outer.rows_per_split);
    const T* wide = static_cast<const T*>(outer.wide);
    const int valid = static_cast<int>(max(min(outer.width - k, int64_t{kSize}), int64_t{0}));
    const bool aligned = on_16_bytes(wide) && outer.width % kSize == 0;

    float acc[kColumns][kSize] = {};
    for (int64_t tile = begin; tile < end; tile += kTileRows) {
        __syncthreads();  // the rows are read until here
        for (int i = threadIdx.x; i < kTileRows * kColumns; i += kThreads) {
            const int r = i / kColumns, c = i % kColumns;
            rows[r][c] = tile + r < end && c0 + c < columns ? thin_row(outer.rows, tile + r, c0 + c) : 0.0f;
        }
        __syncthreads();
        for (int r = lane.row(); r < kTileRows && tile + r < end; r += kGroups) {
            float x[kSize], e[kColumns];
            load_pack(wide + (tile + r) * outer.width + k, valid, aligned, x);
#pragma unroll
            for (int c = 0; c < kColumns; c += 4) {
                const float4 four = *reinterpret_cast<const float4*>(&rows[r][c]);
                e[c] = four.x, e[c + 1] = four.y, e[c + 2] = four.z, e[c + 3] = four.w;
            }
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
#pragma unroll
                for (int q = 0; q < kSize; ++q) acc[c][q] += e[c] * x[q];
            }
        }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int q = 0; q < kSize; ++q) {
            float sum = acc[c][q];  // over the warp's four groups
            sum += __shfl_xor_sync(kAllLanes, sum, kGroup);
            sum += __shfl_xor_sync(kAllLanes, sum, 2 * kGroup);
            if (lane.group == 0) sums[lane.warp][c][lane.column * kSize + q] = sum;
        }
    }
    __syncthreads();
    for (int o = threadIdx.x; o < kColumns * kRun<T>; o += kThreads) {
        const int c = o / kRun<T>, q = o % kRun<T>;
        if (c0 + c >= columns || k0 + q >= outer.width) continue;
        float total = 0.0f;
        for (int w = 0; w < kWarps; ++w) total += sums[w][c][q];
        outer.partials[(split * columns + c0 + c) * outer.width + k0 + q] = total;
    }
}

template <class T>
int64_t outer_blocks(const Outer& outer) {
    return outer.splits * ceil_div(outer.width, kRun<T>) * ceil_div(outer.rows.columns, kColumns);
}

// Where the o-th of a block's partial sums goes, null where it is not wanted.
__device__ float* gate_sum_at(const GateSums& sums, int64_t o) {
    const int64_t hidden = sums.partials.hidden, past = o - sums.partials.fold_count();
    if (past < 0) return sums.dp == nullptr ? nullptr : sums.dp + o;
    if (past < hidden) return sums.b1 == nullptr ? nullptr : sums.b1 + past;
    if (past < 2 * hidden) return sums.w2 == nullptr ? nullptr : sums.w2 + past - hidden;
    return sums.b2;
}

// A warp's lanes take 32 sums, the warps the blocks' parts in turn.
__device__ void gate_sums_block(const GateSums& sums, int64_t block) {
    __shared__ double of_warp[kWarps][32];
    const GatePartials& partials = sums.partials;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t o = block * 32 + lane;
    float* to = o < partials.count() ? gate_sum_at(sums, o) : nullptr;
    double total = 0.0;
    for (int64_t b = warp; to != nullptr && b < partials.blocks; b += kWarps) {
        total += partials.values[b * partials.count() + o];
    }
    of_warp[warp][lane] = total;
    __syncthreads();
    if (warp != 0 || to == nullptr) return;
    for (int w = 1; w < kWarps; ++w) total += of_warp[w][lane];
    *to = static_cast<float>(total);
}

int64_t gate_sums_blocks(const GateSums& sums) {
    return sums.partials.values == nullptr ? 0 : ceil_div(sums.partials.count(), 32);
}

struct OuterPair {
    Outer of[2];
    int64_t blocks[2];
};

// A __grid_constant__ is read where it lies, whichever of the two is meant; else each thread would make a copy.
template <class T>
__global__ __launch_bounds__(kThreads, kBlocksEach) void outer_kernel(const __grid_constant__ OuterPair pair,
                                                                      GateSums sums) {
    const int64_t block = blockIdx.x, products = pair.blocks[0] + pair.blocks[1];
    if (block >= products) {
        gate_sums_block(sums, block - products);
    } else {
        const int which = block < pair.blocks[0] ? 0 : 1;
        outer_block<T>(pair.of[which], which == 0 ? block : block - pair.blocks[0]);
    }
}

}  // namespace

int64_t outer_splits(int64_t m, int64_t width, int columns, DType dtype) {
    const int64_t run = kGroup * 16 / itemsize(dtype);
    const int64_t tiles = ceil_div(width, run) * ceil_div(columns, kColumns);
    return tiles == 0 ? 0 : std::min(ceil_div(m, kTileRows), std::max<int64_t>(1, kBlocks / tiles));
}

void launch_outer(DType dtype, const Outer& a, const Outer& b, const GateSums& sums, const Queue& queue) {
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const OuterPair pair{{a, b}, {outer_blocks<T>(a), outer_blocks<T>(b)}};
        launch("lord.outer", outer_kernel<T>, pair.blocks[0] + pair.blocks[1] + gate_sums_blocks(sums), kThreads, queue,
               pair, sums);
    });
}

}  // namespace lordfast::cuda
