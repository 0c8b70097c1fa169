// The parameters' gradients from the partial sums, added in a fixed order:
//   dA = du^T x,   dB = s (dY^T u + W1^T dP),   dB' = s dY^T (lambda u),   dW1 = s dP B^T
//
// Reads at most 256 blocks' parts of dA and dC, 2 KB each in a 16-bit dtype: up to 1 MB out of L2, written a moment
// ago. A thread an element; neighbouring threads read neighbouring elements. Four small sums, so one launch.
#include "core/cuda/lord_block.cuh"

namespace lordfast::cuda {
namespace {

__device__ inline float add_splits(const float* partials, int64_t splits, int64_t stride, int64_t at) {
    float sum = 0.0f;
#pragma unroll 8  // loads in flight
    for (int64_t s = 0; s < splits; ++s) sum += partials[s * stride + at];
    return sum;
}

__device__ void reduce_a(const Reduce& call, int64_t o) {
    call.a[o] = add_splits(call.outer_a, call.splits_a, call.rank * call.k, o);
}

// Where a gradient of [B, B'] has its row n and column c in the partials.
__device__ inline float columns_of(const Reduce& call, int c, int64_t n) {
    return add_splits(call.outer_b, call.splits_b, 2 * call.rank * call.n, c * call.n + n);
}

__device__ void reduce_b(const Reduce& call, int64_t o) {
    const int64_t n = o % call.n;
    const int j = static_cast<int>(o / call.n);
    float through_gate = 0.0f;
#pragma unroll 8
    for (int h = 0; h < call.hidden; ++h) through_gate += call.w1[h * call.n + n] * call.dp[h * call.rank + j];
    call.b[n * call.rank + j] = call.scaling * (columns_of(call, j, n) + through_gate);
}

__device__ void reduce_b_adv(const Reduce& call, int64_t o) {
    const int64_t n = o % call.n;
    const int j = static_cast<int>(o / call.n);
    call.b_adv[n * call.rank + j] = call.scaling * columns_of(call, call.rank + j, n);
}

__device__ void reduce_w1(const Reduce& call, int64_t o) {
    const int64_t n = o % call.n, h = o / call.n;
    float sum = 0.0f;
    for (int j = 0; j < call.rank; ++j) sum += call.dp[h * call.rank + j] * call.b_parameter[n * call.rank + j];
    call.w1_grad[o] = call.scaling * sum;
}

struct Parts {
    int64_t a, b, b_adv, w1;  // elements, 0 where not wanted

    __host__ __device__ explicit Parts(const Reduce& call)
        : a(call.a == nullptr ? 0 : call.rank * call.k),
          b(call.b == nullptr ? 0 : call.rank * call.n),
          b_adv(call.b_adv == nullptr ? 0 : call.rank * call.n),
          w1(call.w1_grad == nullptr ? 0 : call.hidden * call.n) {}
};

__global__ __launch_bounds__(kThreads) void reduce_kernel(Reduce call) {
    const Parts parts(call);
    int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (o < parts.a) return reduce_a(call, o);
    o -= parts.a;
    if (o < parts.b) return reduce_b(call, o);
    o -= parts.b;
    if (o < parts.b_adv) return reduce_b_adv(call, o);
    o -= parts.b_adv;
    if (o < parts.w1) reduce_w1(call, o);
}

}  // namespace

void launch_reduce(const Reduce& call, const Queue& queue) {
    const Parts parts(call);
    const int64_t elements = parts.a + parts.b + parts.b_adv + parts.w1;
    launch("lord.reduce", reduce_kernel, ceil_div(elements, kThreads), kThreads, queue, call);
}

}  // namespace lordfast::cuda
