// The body of pgd_step, written once over a vector class (simd.h) to which each instruction set's unit adds
//   sign(g)                 -1, 0 or 1; 0 for NaN
//   clamp(v, lo, hi)        NaN if any of the three is; on a tie of -0 and +0 the bound
//   clamp_fixed(v, lo, hi)  for bounds that are not NaN; on a tie v
//   Acc: add_squares(v, j), sum()   16 double lanes; v's elements go to lanes j, j + 1, ...
#pragma once

#include "core/cpu/pgd_step_kernels.h"
#include "core/cpu/simd.h"

namespace lordfast {
namespace {

constexpr size_t kLanes = 16;

// A run of up to kLanes elements in a buffer of kLanes, the rest zero. Lets a tail take the same path as the body:
// zeros add nothing to a sum, and what they give otherwise is not copied back.
template <class T>
struct Padded {
    T data[kLanes];
    Padded(const T* from, size_t n) {
        memset(data, 0, sizeof(data));
        memcpy(data, from, n * sizeof(T));
    }
};

// linf. clamp_fixed's order, not clamp's, for low and high: torch.clamp keeps a -0 at a bound of +0 when the bounds are
// numbers, and takes the bound when they are tensors.
template <class S>
inline typename S::Vec linf_one(typename S::Vec x, typename S::Vec x0, typename S::Vec g, typename S::Vec step,
                                typename S::Vec eps, typename S::Vec low, typename S::Vec high) {
    const typename S::Vec moved = S::add(x, S::mul(S::sign(g), step));
    return S::clamp_fixed(S::clamp(moved, S::sub(x0, eps), S::add(x0, eps)), low, high);
}

template <class S, class T>
void linf_body(const T* x, const T* x0, const T* g, T* out, size_t n, const LinfParams& p) {
    const typename S::Vec step = S::set(p.signed_step), eps = S::set(p.eps), low = S::set(p.low), high = S::set(p.high);
    for (size_t i = 0; i < n; i += S::kWidth) {
        S::store(out + i, linf_one<S>(S::load(x + i), S::load(x0 + i), S::load(g + i), step, eps, low, high));
    }
}

template <class S, class T>
void linf(const void* x_adv, const void* x_orig, const void* grad, void* out_, size_t n, const LinfParams& p) {
    const T *x = static_cast<const T*>(x_adv), *x0 = static_cast<const T*>(x_orig), *g = static_cast<const T*>(grad);
    T* out = static_cast<T*>(out_);
    const size_t body = n - n % kLanes, tail = n - body;
    linf_body<S>(x, x0, g, out, body, p);
    if (tail != 0) {
        const Padded<T> tx(x + body, tail), tx0(x0 + body, tail), tg(g + body, tail);
        T result[kLanes];
        linf_body<S>(tx.data, tx0.data, tg.data, result, kLanes, p);
        memcpy(out + body, result, tail * sizeof(T));
    }
}

// l2. The perturbation after the step, before the projection.
template <class S, bool kMoves, class T>
inline typename S::Vec l2_delta(const T* x, const T* x0, const T* g, typename S::Vec prescale, typename S::Vec scale) {
    typename S::Vec moved = S::load(x);
    if (kMoves) moved = S::add(moved, S::mul(S::mul(S::load(g), prescale), scale));
    return S::sub(moved, S::load(x0));
}

template <class S, class T>
inline void add_grad_squares(typename S::Acc& acc, const T* g, size_t n) {
    for (size_t i = 0; i < n; i += kLanes) {
        for (size_t j = 0; j < kLanes; j += S::kWidth) acc.add_squares(S::load(g + i + j), j);
    }
}

template <class S, class T>
double l2_grad(const void* grad, size_t n) {
    const T* g = static_cast<const T*>(grad);
    const size_t body = n - n % kLanes;
    typename S::Acc acc;
    add_grad_squares<S>(acc, g, body);
    if (n != body) add_grad_squares<S>(acc, Padded<T>(g + body, n - body).data, kLanes);
    return acc.sum();
}

template <class S, bool kMoves, class T>
inline void add_delta_squares(typename S::Acc& acc, const T* x, const T* x0, const T* g, size_t n, const L2Params& p) {
    const typename S::Vec prescale = S::set(p.prescale), scale = S::set(p.scale);
    for (size_t i = 0; i < n; i += kLanes) {
        for (size_t j = 0; j < kLanes; j += S::kWidth) {
            acc.add_squares(l2_delta<S, kMoves>(x + i + j, x0 + i + j, g + i + j, prescale, scale), j);
        }
    }
}

template <class S, bool kMoves, class T>
double l2_dist_as(const T* x, const T* x0, const T* g, size_t n, const L2Params& p) {
    const size_t body = n - n % kLanes, tail = n - body;
    typename S::Acc acc;
    add_delta_squares<S, kMoves>(acc, x, x0, g, body, p);
    if (tail != 0) {
        const Padded<T> tx(x + body, tail), tx0(x0 + body, tail), tg(g + body, tail);
        add_delta_squares<S, kMoves>(acc, tx.data, tx0.data, tg.data, kLanes, p);
    }
    return acc.sum();
}

template <class S, class T>
double l2_dist(const void* x_adv, const void* x_orig, const void* grad, size_t n, const L2Params& p) {
    const T *x = static_cast<const T*>(x_adv), *x0 = static_cast<const T*>(x_orig), *g = static_cast<const T*>(grad);
    return p.moves ? l2_dist_as<S, true>(x, x0, g, n, p) : l2_dist_as<S, false>(x, x0, g, n, p);
}

template <class S, bool kMoves, class T>
void l2_write_body(const T* x, const T* x0, const T* g, T* out, size_t n, const L2Params& p, float shrink_) {
    const typename S::Vec prescale = S::set(p.prescale), scale = S::set(p.scale), shrink = S::set(shrink_);
    const typename S::Vec low = S::set(p.low), high = S::set(p.high);
    for (size_t i = 0; i < n; i += S::kWidth) {
        const typename S::Vec delta = S::mul(l2_delta<S, kMoves>(x + i, x0 + i, g + i, prescale, scale), shrink);
        S::store(out + i, S::clamp_fixed(S::add(S::load(x0 + i), delta), low, high));
    }
}

template <class S, bool kMoves, class T>
void l2_write_as(const T* x, const T* x0, const T* g, T* out, size_t n, const L2Params& p, float shrink) {
    const size_t body = n - n % kLanes, tail = n - body;
    l2_write_body<S, kMoves>(x, x0, g, out, body, p, shrink);
    if (tail != 0) {
        const Padded<T> tx(x + body, tail), tx0(x0 + body, tail), tg(g + body, tail);
        T result[kLanes];
        l2_write_body<S, kMoves>(tx.data, tx0.data, tg.data, result, kLanes, p, shrink);
        memcpy(out + body, result, tail * sizeof(T));
    }
}

template <class S, class T>
void l2_write(const void* x_adv, const void* x_orig, const void* grad, void* out_, size_t n, const L2Params& p,
              float shrink) {
    const T *x = static_cast<const T*>(x_adv), *x0 = static_cast<const T*>(x_orig), *g = static_cast<const T*>(grad);
    T* out = static_cast<T*>(out_);
    if (p.moves) {
        l2_write_as<S, true>(x, x0, g, out, n, p, shrink);
    } else {
        l2_write_as<S, false>(x, x0, g, out, n, p, shrink);
    }
}

template <class S, class T>
constexpr PgdKernels kernels_for() {
    return {linf<S, T>, l2_grad<S, T>, l2_dist<S, T>, l2_write<S, T>};
}

}  // namespace
}  // namespace lordfast
