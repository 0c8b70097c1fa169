// One lambda a sample: the mean of its tokens' logits, and back.
//
// A block a sample, a few bytes a token: a launch's latency and nothing more. The sum is a tree whose shape depends on
// the number of tokens alone.
#include <algorithm>

#include "core/cuda/lord_block.cuh"

namespace lordfast::cuda {
namespace {

constexpr int64_t kMaxBlocks = 65536;

__global__ __launch_bounds__(kThreads) void mean_kernel(const float* token_logit, float* logit, int64_t batch,
                                                        int64_t tokens) {
    for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
        float sum = 0.0f;
        for (int64_t t = threadIdx.x; t < tokens; t += kThreads) sum += token_logit[b * tokens + t];
        sum = block_sum(sum);
        // A sample without tokens gets the logit 0 (lambda 1/2), where a mean would be NaN.
        if (threadIdx.x == 0) logit[b] = tokens == 0 ? 0.0f : sum / tokens;
    }
}

__global__ __launch_bounds__(kThreads) void sample_backward_kernel(SampleBackward call) {
    for (int64_t b = blockIdx.x; b < call.batch; b += gridDim.x) {
        float dlam = 0.0f;
        for (int64_t t = threadIdx.x; call.v != nullptr && t < call.tokens; t += kThreads) {
            const int64_t row = b * call.tokens + t;
            float sum = 0.0f;
            for (int j = 0; j < call.rank; ++j) {
                sum += call.v[row * 2 * call.rank + call.rank + j] * call.u[row * call.rank + j];
            }
            dlam += sum;
        }
        dlam = block_sum(dlam);
        if (threadIdx.x == 0) {
            const float lam = sigmoid(call.logit[b]);
            const float grad = call.grad_logit == nullptr ? 0.0f : call.grad_logit[b];
            call.dlogit[b] = (dlam * lam * (1.0f - lam) + grad) / max(call.tokens, int64_t{1});
        }
    }
}

}  // namespace

void launch_sample_mean(const float* token_logit, float* logit, int64_t batch, int64_t tokens, const Queue& queue) {
    launch("lord.sample_mean", mean_kernel, std::min(batch, kMaxBlocks), kThreads, queue, token_logit, logit, batch,
           tokens);
}

void launch_sample_backward(const SampleBackward& call, const Queue& queue) {
    launch("lord.sample_backward", sample_backward_kernel, std::min(call.batch, kMaxBlocks), kThreads, queue, call);
}

}  // namespace lordfast::cuda
