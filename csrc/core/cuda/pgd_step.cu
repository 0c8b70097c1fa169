// pgd_step on CUDA.
//
// linf: reads x_adv, x_orig and grad, writes out, each element once: 16 bytes an element in fp32, 8 in a 16-bit dtype,
// against 10 operations. A batch of 4 images of 3 x 512 x 512 is 50 MB in fp32, 12 us at 4.3 TB/s. So: one launch,
// 16-byte accesses, one of each of the three arrays in flight a thread; nothing else matters. Elements before the first
// 16-byte boundary and behind the last go one at a time, all of them where the arrays' offsets to a boundary differ.
//
// l2: grad; then all three inputs; then all three inputs and out: 8 accesses an element, 23 us for that batch if
// nothing were left in L2 (it mostly is: it holds the batch). Three launches, since a norm needs its whole sample. The
// order of addition is the CPU's, 16 double lanes in a chunk of 4096: a block stages a chunk in shared memory with wide
// loads and 16 of its threads add. That leaves most threads idle while they do, a few microseconds a chunk with several
// blocks on each multiprocessor; a tree over all threads would be faster, and would give other bits than the CPU. Each
// block adds its sample's partial sums again rather than pay for two more launches. No atomics.
//
// No product here may be fused into an addition: it would round once where the definition rounds twice. The intrinsics
// say so, whatever the compiler's flags.
#include <algorithm>

#include "core/cuda/element.cuh"
#include "core/cuda/launch.h"
#include "core/cuda/pgd_step.h"
#include "core/pgd_scale.h"

namespace lordfast::cuda {
namespace {

constexpr int kThreads = 256;
// About two waves on the largest devices; more work is looped over.
constexpr int64_t kMaxBlocks = 2048;
constexpr int64_t kChunk = kPgdChunk;
constexpr int kLanes = kPgdLanes;

template <class T>
struct Images {
    const T *x_adv, *x_orig, *grad;
    T* out;

    __device__ Images from(int64_t element) const {
        return {x_adv + element, x_orig + element, grad + element, out + element};
    }
    __device__ bool aligned() const {
        return on_16_bytes(x_adv) && on_16_bytes(x_orig) && on_16_bytes(grad) && on_16_bytes(out);
    }
};

__device__ inline float sign(float g) { return (g > 0.0f ? 1.0f : 0.0f) - (g < 0.0f ? 1.0f : 0.0f); }

// NaN if any of the three is; on a tie of -0 and +0 the bound.
__device__ inline float clamp(float v, float lo, float hi) {
    const float above = v > lo ? v : lo;
    const float inside = above < hi ? above : hi;
    return v != v || lo != lo || hi != hi ? __int_as_float(0x7fffffff) : inside;
}

// For bounds that are not NaN; on a tie v.
__device__ inline float clamp_fixed(float v, float lo, float hi) {
    const float above = lo > v ? lo : v;
    return hi < above ? hi : above;
}

__device__ inline float linf_one(float x, float x0, float g, const LinfParams& p) {
    const float moved = __fadd_rn(x, __fmul_rn(sign(g), p.signed_step));
    return clamp_fixed(clamp(moved, __fsub_rn(x0, p.eps), __fadd_rn(x0, p.eps)), p.low, p.high);
}

// `packs` runs of 16 bytes from element `head` on; the elements around them one by one.
template <class T>
__global__ __launch_bounds__(kThreads) void linf_kernel(Images<T> all, int64_t total, int64_t head, int64_t packs,
                                                        LinfParams p) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = first; i < packs; i += stride) {
        const Images<T> here = all.from(head + i * kPack<T>);
        float x[kPack<T>], x0[kPack<T>], g[kPack<T>];
        load_pack(here.x_adv, kPack<T>, true, x);
        load_pack(here.x_orig, kPack<T>, true, x0);
        load_pack(here.grad, kPack<T>, true, g);
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) x[e] = linf_one(x[e], x0[e], g[e], p);
        store_pack(here.out, kPack<T>, true, x);
    }
    for (int64_t i = first; i < total - packs * kPack<T>; i += stride) {
        const Images<T> here = all.from(i < head ? i : i + packs * kPack<T>);
        from_float(*here.out, linf_one(to_float(*here.x_adv), to_float(*here.x_orig), to_float(*here.grad), p));
    }
}

// The perturbation after the step, before the projection.
__device__ inline float l2_delta(float x, float x0, float g, const L2Params& p) {
    const float moved = p.moves ? __fadd_rn(x, __fmul_rn(__fmul_rn(g, p.prescale), p.scale)) : x;
    return __fsub_rn(moved, x0);
}

// The sum of squares of staged[0 .. n), in its one order. For thread 0; all threads must call. Starts and ends with the
// block in step.
__device__ double chunk_squares(const float* staged, int n) {
    __shared__ double lanes[kLanes];
    __syncthreads();
    if (threadIdx.x < kLanes) {
        double sum = 0.0;
        // The product of two floats is exact in double, so fused and separate give the same bits.
        for (int i = threadIdx.x; i < n; i += kLanes) {
            sum += static_cast<double>(staged[i]) * static_cast<double>(staged[i]);
        }
        lanes[threadIdx.x] = sum;
    }
    __syncthreads();
    double total = 0.0;
    if (threadIdx.x == 0) {
        for (int lane = 0; lane < kLanes; ++lane) total += lanes[lane];
    }
    return total;
}

// sqrt(partial[0] + partial[1] + ...), added in that order; for thread 0.
__device__ double ordered_norm(const double* partial, int64_t count) {
    __shared__ double staged[kThreads];
    double total = 0.0;
    for (int64_t base = 0; base < count; base += kThreads) {
        const int n = static_cast<int>(min(count - base, static_cast<int64_t>(kThreads)));
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < n) staged[threadIdx.x] = partial[base + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int i = 0; i < n; ++i) total += staged[i];
        }
    }
    return sqrt(total);
}

// The blocks of one sample share its chunks; `parts` of them. Where samples are many, a block takes several.
struct L2Grid {
    int64_t batch, numel, chunks, parts;
    double *grad_partial, *dist_partial;  // (batch, chunks)
    L2Params* params;                     // (batch,)
    float signed_step, eps, low, high;

    __device__ int64_t part() const { return blockIdx.x % parts; }
    __device__ int64_t first_sample() const { return blockIdx.x / parts; }
    __device__ int64_t sample_stride() const { return gridDim.x / parts; }
    __device__ int count(int64_t chunk) const {
        return static_cast<int>(min(kChunk, static_cast<int64_t>(numel - chunk * kChunk)));
    }
};

template <class T>
__global__ __launch_bounds__(kThreads) void l2_grad_kernel(Images<T> all, L2Grid grid) {
    __shared__ float staged[kChunk];
    for (int64_t b = grid.first_sample(); b < grid.batch; b += grid.sample_stride()) {
        const bool aligned = on_16_bytes(all.grad + b * grid.numel);
        for (int64_t c = grid.part(); c < grid.chunks; c += grid.parts) {
            const T* grad = all.grad + b * grid.numel + c * kChunk;
            const int n = grid.count(c);
            for (int i = threadIdx.x * kPack<T>; i < n; i += kThreads * kPack<T>) {
                float g[kPack<T>];
                load_pack(grad + i, min(kPack<T>, n - i), aligned, g);
#pragma unroll
                for (int e = 0; e < kPack<T>; ++e) staged[i + e] = g[e];
            }
            const double sum = chunk_squares(staged, n);
            if (threadIdx.x == 0) grid.grad_partial[b * grid.chunks + c] = sum;
        }
    }
}

// The perturbations of one run of 16 bytes; x_orig's elements stay in x0.
template <class T>
__device__ inline void l2_deltas(const Images<T>& here, int valid, bool aligned, const L2Params& p,
                                 float (&x0)[kPack<T>], float (&delta)[kPack<T>]) {
    float x[kPack<T>], g[kPack<T>] = {};
    load_pack(here.x_adv, valid, aligned, x);
    load_pack(here.x_orig, valid, aligned, x0);
    if (p.moves) load_pack(here.grad, valid, aligned, g);
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) delta[e] = l2_delta(x[e], x0[e], g[e], p);
}

template <class T>
__global__ __launch_bounds__(kThreads) void l2_dist_kernel(Images<T> all, L2Grid grid) {
    __shared__ float staged[kChunk];
    __shared__ L2Params p;
    for (int64_t b = grid.first_sample(); b < grid.batch; b += grid.sample_stride()) {
        const double norm = ordered_norm(grid.grad_partial + b * grid.chunks, grid.chunks);
        if (threadIdx.x == 0) {
            p = l2_params(norm, grid.signed_step, grid.low, grid.high);
            if (grid.part() == 0) grid.params[b] = p;
        }
        __syncthreads();
        const Images<T> sample = all.from(b * grid.numel);
        const bool aligned = sample.aligned();
        for (int64_t c = grid.part(); c < grid.chunks; c += grid.parts) {
            const int n = grid.count(c);
            for (int i = threadIdx.x * kPack<T>; i < n; i += kThreads * kPack<T>) {
                float x0[kPack<T>], delta[kPack<T>];
                l2_deltas(sample.from(c * kChunk + i), min(kPack<T>, n - i), aligned, p, x0, delta);
#pragma unroll
                for (int e = 0; e < kPack<T>; ++e) staged[i + e] = delta[e];
            }
            const double sum = chunk_squares(staged, n);
            if (threadIdx.x == 0) grid.dist_partial[b * grid.chunks + c] = sum;
        }
        __syncthreads();  // p is read until here
    }
}

template <class T>
__global__ __launch_bounds__(kThreads) void l2_write_kernel(Images<T> all, L2Grid grid) {
    __shared__ float shared_shrink;
    for (int64_t b = grid.first_sample(); b < grid.batch; b += grid.sample_stride()) {
        const double dist = ordered_norm(grid.dist_partial + b * grid.chunks, grid.chunks);
        if (threadIdx.x == 0) shared_shrink = l2_shrink(dist, grid.eps);
        __syncthreads();
        const float shrink = shared_shrink;
        const L2Params p = grid.params[b];
        const Images<T> sample = all.from(b * grid.numel);
        const bool aligned = sample.aligned();
        for (int64_t c = grid.part(); c < grid.chunks; c += grid.parts) {
            const int n = grid.count(c);
            for (int i = threadIdx.x * kPack<T>; i < n; i += kThreads * kPack<T>) {
                const Images<T> here = sample.from(c * kChunk + i);
                const int valid = min(kPack<T>, n - i);
                float x0[kPack<T>], delta[kPack<T>];
                l2_deltas(here, valid, aligned, p, x0, delta);
#pragma unroll
                for (int e = 0; e < kPack<T>; ++e) {
                    delta[e] = clamp_fixed(__fadd_rn(x0[e], __fmul_rn(delta[e], shrink)), p.low, p.high);
                }
                store_pack(here.out, valid, aligned, delta);
            }
        }
        __syncthreads();  // shared_shrink is read until here
    }
}

template <class T>
Images<T> images(const PgdStep& s) {
    return {static_cast<const T*>(s.x_adv), static_cast<const T*>(s.x_orig), static_cast<const T*>(s.grad),
            static_cast<T*>(s.out)};
}

template <class T>
void step_linf(const PgdStep& s, const Queue& queue) {
    const Images<T> all = images<T>(s);
    const int64_t total = s.batch * s.numel;
    const auto past = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16; };
    const uintptr_t offset = past(s.out);
    int64_t head = 0, packs = 0;
    if (past(s.x_adv) == offset && past(s.x_orig) == offset && past(s.grad) == offset) {
        head = std::min<int64_t>(total, (16 - offset) % 16 / sizeof(T));
        packs = (total - head) / kPack<T>;
    }
    const int64_t items = std::max(packs, total - packs * kPack<T>);
    const LinfParams params{s.direction * s.step_size, s.eps, s.low, s.high};
    launch("pgd_step.linf", linf_kernel<T>, std::min<int64_t>(kMaxBlocks, ceil_div(items, kThreads)), kThreads, queue,
           all, total, head, packs, params);
}

template <class T>
void step_l2(const PgdStep& s, void* workspace, const Queue& queue) {
    L2Grid grid{};
    grid.batch = s.batch, grid.numel = s.numel, grid.chunks = ceil_div(s.numel, kChunk);
    const int64_t partials = grid.batch * grid.chunks;
    grid.grad_partial = static_cast<double*>(workspace);
    grid.dist_partial = grid.grad_partial + partials;
    grid.params = reinterpret_cast<L2Params*>(grid.dist_partial + partials);
    grid.signed_step = s.direction * s.step_size, grid.eps = s.eps, grid.low = s.low, grid.high = s.high;
    const int64_t samples = std::min(s.batch, kMaxBlocks);
    grid.parts = std::min(grid.chunks, std::max<int64_t>(1, kMaxBlocks / samples));
    const Images<T> all = images<T>(s);
    const int64_t blocks = samples * grid.parts;
    launch("pgd_step.l2_grad", l2_grad_kernel<T>, blocks, kThreads, queue, all, grid);
    launch("pgd_step.l2_dist", l2_dist_kernel<T>, blocks, kThreads, queue, all, grid);
    launch("pgd_step.l2_write", l2_write_kernel<T>, blocks, kThreads, queue, all, grid);
}

}  // namespace

int64_t pgd_step_workspace(Norm norm, int64_t batch, int64_t numel) {
    if (norm == Norm::linf) return 0;
    return batch * (2 * ceil_div(numel, kChunk) * sizeof(double) + sizeof(L2Params));
}

void pgd_step(const PgdStep& step, void* workspace, const Queue& queue) {
    if (step.batch * step.numel == 0) return;
    const DeviceGuard guard(queue.device);
    with_type(step.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if (step.norm == Norm::linf) {
            step_linf<T>(step, queue);
        } else {
            step_l2<T>(step, workspace, queue);
        }
    });
}

}  // namespace lordfast::cuda
