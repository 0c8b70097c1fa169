// The gate's backward pass, from v = dY C to du, dP, db1, dw2 and db2.
//
// Works on a few numbers a row: at r = 4 it reads u, v and the logit and writes du, 68 bytes, 1.1 MB for M = 16384; the
// gate's first layer is computed again (2 M H r operations), which is cheaper than having stored it. Its time is
// that of a launch. It is not the epilogue of v's product, where a sample's lambda would have to wait for all its
// tokens and every block would write its part of dP: here few blocks take many rows each.
//
// dP is summed in double, over the rows as well: its rounding errors reach whole rows of W1's gradient, where they do
// not average out. The three sums beside it are for the same cost.
#include <algorithm>

#include "core/cuda/lord_gate.cuh"

namespace lordfast::cuda {
namespace {

constexpr int kRows = kGroups;  // of a tile: a group of lanes for each
constexpr int kHidden = 64;     // hidden units at once
// Two on each multiprocessor of the largest devices; their parts of dP are 0.5 MB at H = 64, r = 4.
constexpr int64_t kPartialBlocks = 256;

// Adds to this block's own partial sum, of which `value` may be the first part.
__device__ inline void add_partial(double* partial, double value, bool is_first) {
    *partial = is_first ? value : *partial + value;
}

struct Tile {
    float u[kRows][kMaxRank + 1];
    float du[kRows][kMaxRank + 1];
    float da[kRows][kHidden + 1];
    float dw2[kRows][kHidden + 1];  // dlogit * act(z): a row's part of dw2
    float dlogit[kRows];
};

// u, v1 + lambda v2 and dlogit of the tile's rows; zeros behind the last.
__device__ void load_rows(const GateBackward& call, int64_t first, Tile& tile) {
    const Lane lane;
    const int r = lane.row(), rank = call.rank;
    const int64_t row = first + r;
    const bool inside = row < call.m;
    const float lam = inside ? sigmoid(call.logit[row / call.tokens]) : 0.0f;
    float dlam = 0.0f;
    for (int j = lane.column; j < rank; j += kGroup) {
        const float u = inside ? call.u[row * rank + j] : 0.0f;
        float v1 = 0.0f, v2 = 0.0f;
        if (inside && call.v != nullptr) {
            v1 = call.v[row * 2 * rank + j];
            v2 = call.v[row * 2 * rank + rank + j];
        }
        tile.u[r][j] = u;
        tile.du[r][j] = v1 + lam * v2;
        dlam += v2 * u;
    }
    dlam = group_sum(dlam);
    if (lane.column == 0) {
        float dlogit = 0.0f;
        if (inside && call.dlogit != nullptr) {
            dlogit = call.dlogit[row / call.tokens];
        } else if (inside) {
            dlogit = dlam * lam * (1.0f - lam) + (call.grad_logit == nullptr ? 0.0f : call.grad_logit[row]);
        }
        tile.dlogit[r] = dlogit;
    }
}

// da and the parts of dw2 of hidden units h0 .. h0 + hidden.
__device__ void gate_rows(const GateBackward& call, int h0, int hidden, Tile& tile) {
    for (int i = threadIdx.x; i < kRows * hidden; i += kThreads) {
        const int r = i / hidden, h = i % hidden;
        float z = call.b1[h0 + h];
        for (int j = 0; j < call.rank; ++j) z += call.p[j * call.hidden + h0 + h] * tile.u[r][j];
        tile.da[r][h] = tile.dlogit[r] * call.w2[h0 + h] * derivative(z, call.activation);
        tile.dw2[r][h] = tile.dlogit[r] * activate(z, call.activation);
    }
}

__device__ void add_partials(const GateBackward& call, int h0, int hidden, bool is_first, const Tile& tile) {
    double* partial = call.partials.values + blockIdx.x * call.partials.count();
    if (call.wants_fold) {
        for (int i = threadIdx.x; i < hidden * call.rank; i += kThreads) {
            const int h = i / call.rank, j = i % call.rank;
            double sum = 0.0;
            for (int r = 0; r < kRows; ++r) sum += static_cast<double>(tile.da[r][h]) * tile.u[r][j];
            add_partial(partial + (h0 + h) * call.rank + j, sum, is_first);
        }
    }
    double* vectors = partial + call.partials.fold_count();
    for (int i = threadIdx.x; i < 2 * hidden; i += kThreads) {
        const int h = i % hidden;
        double sum = 0.0;
        for (int r = 0; r < kRows; ++r) sum += i < hidden ? tile.da[r][h] : tile.dw2[r][h];
        add_partial(vectors + (i < hidden ? 0 : call.hidden) + h0 + h, sum, is_first);
    }
    if (h0 == 0 && threadIdx.x == kThreads - 1) {
        double sum = 0.0;
        for (int r = 0; r < kRows; ++r) sum += tile.dlogit[r];
        add_partial(vectors + 2 * call.hidden, sum, is_first);
    }
}

__global__ __launch_bounds__(kThreads) void gate_backward_kernel(GateBackward call) {
    __shared__ Tile tile;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kRows;
    const int64_t start = static_cast<int64_t>(blockIdx.x) * kRows;
    for (int64_t first = start; first < call.m; first += stride) {
        __syncthreads();  // the last tile is read until here
        load_rows(call, first, tile);
        for (int h0 = 0; h0 < call.hidden; h0 += kHidden) {
            const int hidden = min(kHidden, call.hidden - h0);
            __syncthreads();  // u and dlogit are there; the last hidden units are read
            gate_rows(call, h0, hidden, tile);
            __syncthreads();
            if (call.du != nullptr) {
                for (int i = threadIdx.x; i < kRows * call.rank; i += kThreads) {
                    const int r = i / call.rank, j = i % call.rank;
                    float sum = tile.du[r][j];
                    for (int h = 0; h < hidden; ++h) sum += tile.da[r][h] * call.p[j * call.hidden + h0 + h];
                    tile.du[r][j] = sum;
                }
            }
            if (call.partials.values != nullptr) add_partials(call, h0, hidden, first == start, tile);
        }
        if (call.du == nullptr) continue;
        // Each thread wrote the elements that it reads here.
        for (int i = threadIdx.x; i < kRows * call.rank; i += kThreads) {
            const int r = i / call.rank;
            if (first + r < call.m) call.du[(first + r) * call.rank + i % call.rank] = tile.du[r][i % call.rank];
        }
    }
}

}  // namespace

int64_t gate_backward_blocks(int64_t m, bool partials) {
    const int64_t tiles = ceil_div(m, kRows);
    return partials ? std::min(tiles, kPartialBlocks) : tiles;
}

void launch_gate_backward(const GateBackward& call, const Queue& queue) {
    launch("lord.gate_backward", gate_backward_kernel, call.blocks, kThreads, queue, call);
}

}  // namespace lordfast::cuda
