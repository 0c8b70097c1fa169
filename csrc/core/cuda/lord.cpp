// lord_forward and lord_backward: which kernels run in which order, and where in the workspace their results lie.
//
// Forward: fold, down with the gate, (a sample's mean,) update. Backward: down (v = dY C) beside the fold, (a sample's
// logit gradient,) the gate, outer, update, reduce; of these the last three only where somebody wants what they
// compute. Compulsory bytes at M = 16384, K = N = 320, r = 4 in bf16: forward 31 MB (x read; y read and written),
// backward 42 MB (dY; dx read and written; x), 10 MB more for the second reading of dY; 7.3 and 10 us at 4.3 TB/s on
// top of the base layer's own products, which a fused kernel would not pay. That kernel keeps y in registers and needs
// the tensor cores for x W^T as well: it competes with the vendor's library, this does not.
#include "core/cuda/ceil_div.h"
#include "core/cuda/launch.h"
#include "core/cuda/lord_kernels.h"

namespace lordfast::cuda {
namespace {

// Hands out parts of the workspace on 16-byte boundaries. With a null base it only counts.
class Workspace {
  public:
    explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

    template <class T>
    T* take(int64_t count) {
        T* at = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
        used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), 16) * 16;
        return at;
    }
    int64_t used() const { return used_; }

  private:
    char* base_;
    int64_t used_ = 0;
};

struct ForwardSpace {
    float *p, *token_logit;
    int64_t bytes;

    ForwardSpace(const LordShape& s, void* base) {
        Workspace space(base);
        p = space.take<float>(int64_t{s.rank} * s.hidden);
        token_logit = s.per_sample() ? space.take<float>(s.m) : nullptr;
        bytes = space.used();
    }
};

struct BackwardSpace {
    float *p, *v, *dlogit, *du, *dp, *outer_a, *outer_b;
    GatePartials gate;
    int64_t gate_blocks, splits_a, splits_b, bytes;

    BackwardSpace(const LordShape& s, const LordBackward& call, void* base) {
        Workspace space(base);
        p = space.take<float>(int64_t{s.rank} * s.hidden);
        v = space.take<float>(call.grad_y == nullptr ? 0 : s.m * 2 * s.rank);
        dlogit = space.take<float>(s.batch);
        du = space.take<float>(call.wants_thin() ? s.m * s.rank : 0);
        gate_blocks = gate_backward_blocks(s.m, call.wants_gate());
        gate = {nullptr, gate_blocks, s.rank, s.hidden};
        if (call.wants_gate()) gate.values = space.take<double>(gate.blocks * gate.count());
        dp = space.take<float>(gate.fold_count());
        splits_a = call.a == nullptr ? 0 : outer_splits(s.m, s.k, s.rank, s.dtype);
        splits_b = call.grad_y == nullptr || !call.wants_columns() ? 0 : outer_splits(s.m, s.n, 2 * s.rank, s.dtype);
        outer_a = space.take<float>(splits_a * s.rank * s.k);
        outer_b = space.take<float>(splits_b * 2 * s.rank * s.n);
        bytes = space.used();
    }
};

// C = s [B, B'], with B's rows as its depth.
ThinMatrix both_branches(const LordShape& s, const LordParameters& p) {
    return {p.b, p.b_adv, 1, s.rank, s.rank, 2 * s.rank, s.scaling};
}

ThinMatrix down_projection(const LordShape& s, const LordParameters& p) {
    return {p.a, nullptr, s.k, 1, s.rank, s.rank, 1.0f};
}

Fold fold_of(const LordShape& s, const LordParameters& p, float* to) {
    return {p.w1, p.b, to, s.n, s.rank, s.hidden, s.scaling};
}

ThinRows gated_rows(const LordShape& s, const float* u, const float* logit) {
    return {u, logit, s.tokens(), s.rank, 2 * s.rank};
}

Outer outer_of(const void* wide, int64_t m, int64_t width, const ThinRows& rows, int64_t splits, float* partials) {
    return {wide, m, width, rows, splits, splits == 0 ? 0 : ceil_div(m, splits), partials};
}

void backward_rows(const LordShape& s, const LordParameters& p, const LordBackward& call, const BackwardSpace& space,
                   const Queue& queue) {
    const Fold fold = fold_of(s, p, space.p);
    if (call.grad_y == nullptr) {
        launch_fold(fold, queue);
    } else {
        const GateForward no_gate{};
        launch_down(s.dtype, {call.grad_y, space.v, s.m, s.n, both_branches(s, p), no_gate, fold}, queue);
    }
    const float* v = call.grad_y == nullptr ? nullptr : space.v;
    if (s.per_sample()) {
        launch_sample_backward({v, call.u, call.gate_logit, call.grad_logit, space.dlogit, s.batch, s.tokens(), s.rank},
                               queue);
    }
    launch_gate_backward({v, call.u, call.gate_logit, call.grad_logit, s.per_sample() ? space.dlogit : nullptr, space.p,
                          p.b1, p.w2, call.wants_thin() ? space.du : nullptr, s.m, s.tokens(), s.rank, s.hidden,
                          s.activation, space.gate_blocks, call.wants_fold(), space.gate},
                         queue);
}

}  // namespace

int64_t lord_forward_workspace(const LordShape& shape) { return ForwardSpace(shape, nullptr).bytes; }

int64_t lord_backward_workspace(const LordShape& shape, const LordBackward& call) {
    return BackwardSpace(shape, call, nullptr).bytes;
}

void lord_forward(const LordShape& s, const LordParameters& p, const LordForward& call, const Queue& queue) {
    const DeviceGuard guard(queue.device);
    const ForwardSpace space(s, call.workspace);
    if (s.m > 0) {
        launch_fold(fold_of(s, p, space.p), queue);
        float* logit = s.per_sample() ? space.token_logit : call.gate_logit;
        const GateForward gate{space.p, p.b1, p.w2, p.b2, logit, s.hidden, s.activation};
        launch_down(s.dtype, {call.x, call.u, s.m, s.k, down_projection(s, p), gate, Fold{}}, queue);
    }
    if (s.per_sample()) launch_sample_mean(space.token_logit, call.gate_logit, s.batch, s.tokens(), queue);
    launch_update(s.dtype,
                  {call.y, s.m, s.n, gated_rows(s, call.u, call.gate_logit), both_branches(s, p), call.accumulate},
                  queue);
}

void lord_backward(const LordShape& s, const LordParameters& p, const LordBackward& call, const Queue& queue) {
    const DeviceGuard guard(queue.device);
    const BackwardSpace space(s, call, call.workspace);
    if (s.m > 0 && (call.wants_thin() || call.wants_gate())) backward_rows(s, p, call, space, queue);
    const ThinRows du{space.du, nullptr, 1, s.rank, s.rank};
    if (call.a != nullptr || call.wants_columns() || call.wants_gate()) {
        launch_outer(
            s.dtype, outer_of(call.x, s.m, s.k, du, space.splits_a, space.outer_a),
            outer_of(call.grad_y, s.m, s.n, gated_rows(s, call.u, call.gate_logit), space.splits_b, space.outer_b),
            {space.gate, call.wants_fold() ? space.dp : nullptr, call.b1, call.w2, call.b2}, queue);
    }
    if (call.x_grad != nullptr) {
        launch_update(s.dtype, {call.x_grad, s.m, s.k, du, down_projection(s, p), call.accumulate}, queue);
    }
    launch_reduce({s.k, s.n, s.rank, s.hidden, s.scaling, space.outer_a, space.outer_b, space.splits_a, space.splits_b,
                   p.w1, p.b, space.dp, call.a, call.b, call.b_adv, call.w1},
                  queue);
}

}  // namespace lordfast::cuda
