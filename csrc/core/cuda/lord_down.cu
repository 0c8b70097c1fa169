// The product of a wide matrix with a thin one, a few numbers a row: u = x A^T with the gate behind it, v = dY C.
//
// Reads M K elements once: for M = 16384, K = 320 in bf16 10.5 MB, 2.4 us at 4.3 TB/s, against 2 M K c operations (c =
// r, or 2 r for v): 42 MFLOP at r = 4, far below what the multiprocessors do in that time; from c = 16 on the fp32
// units, not memory, set the pace (9.6 elements a clock and multiprocessor arrive, c products each, 128 units). Tensor
// cores would help there and nowhere else, and would round x A^T's operands to 16 bits or want three products for one.
//
// A thread keeps 4 rows x 4 or 8 columns of sums in registers: fewer rows, and reading A from shared memory (128 bytes
// a clock) would take longer than x takes to arrive. Larger c loops over tiles of 8 columns; the rows it reads again
// are still in L1 or L2. Where rows are few, up to 8 warps share them and split the depth, so that there is enough in
// flight. A sum over the depth is a tree over lanes and warps whose leaves are at most 512 / 8 x depth / 512 elements.
//
// The fold is H r products over N in double. As a launch of its own it costs its latency, in this kernel's prologue it
// would cost every block W1 (80 KB at H = 64) from L2. Forward, the gate needs it, so it goes first; backward, the gate
// comes later and the fold runs in blocks beside the product.
#include "core/cuda/lord_gate.cuh"

namespace lordfast::cuda {
namespace {

constexpr int kDepth = 512;        // of the thin matrix in shared memory at once
constexpr int kRows = 4;           // of a thread
constexpr int kStrip = 4 * kRows;  // rows of a warp
constexpr int kFoldColumns = 4;    // of P that a block computes for one hidden unit

__device__ void fold_block(const Fold& fold, int64_t block) {
    const int tiles = static_cast<int>(ceil_div(fold.rank, kFoldColumns));
    const int h = static_cast<int>(block / tiles), j0 = static_cast<int>(block % tiles) * kFoldColumns;
    double sums[kFoldColumns] = {};
    for (int64_t n = threadIdx.x; n < fold.n; n += kThreads) {
        const double w = fold.w1[h * fold.n + n];
#pragma unroll
        for (int c = 0; c < kFoldColumns; ++c) {
            if (j0 + c < fold.rank) sums[c] += w * fold.b[n * fold.rank + j0 + c];
        }
    }
#pragma unroll
    for (int c = 0; c < kFoldColumns; ++c) {
        const double total = block_sum(sums[c]);
        if (threadIdx.x == 0 && j0 + c < fold.rank) {
            fold.p[(j0 + c) * fold.hidden + h] = static_cast<float>(fold.scaling * total);
        }
    }
}

__global__ __launch_bounds__(kThreads) void fold_kernel(Fold fold) { fold_block(fold, blockIdx.x); }

int64_t fold_blocks(const Fold& fold) {
    return fold.p == nullptr ? 0 : fold.hidden * ceil_div(fold.rank, kFoldColumns);
}

// A group of lanes takes a row, its lanes the hidden units.
__device__ void gate_rows(const Down& down, int64_t first, int rows) {
    const GateForward& gate = down.gate;
    const Lane lane;
    const int rank = down.thin.columns;
    for (int row = lane.row(); row < rows; row += kGroups) {
        const int64_t at = first + row;
        float sum = 0.0f;
        if (at < down.m) {
            for (int h = lane.column; h < gate.hidden; h += kGroup) {
                float z = gate.b1[h];
                for (int j = 0; j < rank; ++j) z += gate.p[j * gate.hidden + h] * down.out[at * rank + j];
                sum += gate.w2[h] * activate(z, gate.activation);
            }
        }
        sum = group_sum(sum);
        if (at < down.m && lane.column == 0) gate.logit[at] = sum + gate.b2[0];
    }
}

// `slices` warps share a strip of rows and split the depth among them.
template <class T, int kColumns>
__global__ __launch_bounds__(kThreads, kBlocksEach) void down_kernel(Down down, int64_t product_blocks, int slices) {
    constexpr int kSize = kPack<T>;
    __shared__ __align__(16) float tile[kColumns][padded(kDepth)];
    __shared__ float sums[kWarps][kStrip][kColumns];
    if (blockIdx.x >= product_blocks) {
        fold_block(down.fold, blockIdx.x - product_blocks);
        return;
    }
    const Lane lane;
    const int slice = lane.warp % slices, rows = kWarps / slices * kStrip;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * rows;
    const int64_t row = first + lane.warp / slices * kStrip + lane.group * kRows;
    const T* wide = static_cast<const T*>(down.wide);
    const bool aligned = on_16_bytes(wide) && down.depth % kSize == 0;

    for (int c0 = 0; c0 < down.thin.columns; c0 += kColumns) {
        float acc[kRows][kColumns] = {};
        for (int64_t k0 = 0; k0 < down.depth; k0 += kDepth) {
            __syncthreads();  // the tile is read until here
            stage_thin<kSize, kColumns, kDepth>(down.thin, c0, k0, down.depth, tile);
            __syncthreads();
            for (int run = slice; run < kDepth / kRun<T> && k0 + run * kRun<T> < down.depth; run += slices) {
                const int64_t k = k0 + run * kRun<T> + lane.column * kSize;
                const int valid = static_cast<int>(max(min(down.depth - k, int64_t{kSize}), int64_t{0}));
                float x[kRows][kSize];
#pragma unroll
                for (int i = 0; i < kRows; ++i) {
                    const bool inside = row + i < down.m;
                    load_pack(wide + (inside ? row + i : 0) * down.depth + k, inside ? valid : 0, aligned, x[i]);
                }
#pragma unroll
                for (int c = 0; c < kColumns; ++c) {
                    float a[kSize];
                    read_placed(tile[c], run, lane.column, a);
#pragma unroll
                    for (int i = 0; i < kRows; ++i) {
#pragma unroll
                        for (int e = 0; e < kSize; ++e) acc[i][c] += x[i][e] * a[e];
                    }
                }
            }
        }
        __syncthreads();  // the last tile's sums are read until here
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                const float total = group_sum(acc[i][c]);
                if ((i * kColumns + c) % kGroup == lane.column) {
                    sums[lane.warp][lane.group * kRows + i][c] = total;
                }
            }
        }
        __syncthreads();
        for (int o = threadIdx.x; o < rows * kColumns; o += kThreads) {
            const int r = o / kColumns, c = o % kColumns;
            if (first + r >= down.m || c0 + c >= down.thin.columns) continue;
            float total = 0.0f;
            for (int s = 0; s < slices; ++s) total += sums[r / kStrip * slices + s][r % kStrip][c];
            down.out[(first + r) * down.thin.columns + c0 + c] = total;
        }
    }
    if (down.gate.logit == nullptr) return;
    __syncthreads();  // other threads of the block wrote these rows of out
    gate_rows(down, first, rows);
}

// Enough blocks for two on each multiprocessor of the largest devices, as long as each warp has a run to read.
int slices_for(int64_t m, int64_t runs) {
    int slices = 1;
    while (slices < kWarps && ceil_div(m, kWarps / slices * kStrip) < 256 && 2 * slices <= runs) slices *= 2;
    return slices;
}

template <class T>
void launch_down_as(const Down& down, const Queue& queue) {
    const int slices = slices_for(down.m, ceil_div(down.depth, kRun<T>));
    const int64_t product = ceil_div(down.m, kWarps / slices * kStrip);
    const auto kernel = down.thin.columns <= 4 ? down_kernel<T, 4> : down_kernel<T, 8>;
    launch("lord.down", kernel, product + fold_blocks(down.fold), kThreads, queue, down, product, slices);
}

}  // namespace

void launch_fold(const Fold& fold, const Queue& queue) {
    launch("lord.fold", fold_kernel, fold_blocks(fold), kThreads, queue, fold);
}

void launch_down(DType dtype, const Down& down, const Queue& queue) {
    with_type(dtype, [&](auto* type) { launch_down_as<std::remove_pointer_t<decltype(type)>>(down, queue); });
}

}  // namespace lordfast::cuda
