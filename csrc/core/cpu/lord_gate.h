// The gate over a vector class (simd.h), in fp32: kLordLanes tokens at a time, one a lane, so that any H and r fill the
// vectors. exp and erfc are polynomials fitted for this file, good to 2 units in the last place (erfc: of 1, which is
// what gelu sees of it).
//
// For H = 64, r = 4 and 4096 tokens 0.12 ms forward and 0.28 ms backward with AVX-512 (silu): about 25 and 60
// instructions for each vector of pre-activations, most of them exp and the division. Sums over tokens stay in lanes,
// in fp32, for at most a few hundred rows and go on in double: fp32 throughout costs W1's gradient its digits.
#pragma once

#include "core/cpu/lord_kernels.h"
#include "core/cpu/simd.h"

namespace lordfast {
namespace {

// e^v for v in [-87, 88], and the nearer end's value outside; NaN stays NaN.
template <class S>
inline typename S::Vec exp(typename S::Vec v) {
    using Vec = typename S::Vec;
    const Vec x = S::min(S::set(88.0f), S::max(S::set(-87.0f), v));
    // Adding 1.5 * 2^23 rounds to an integer. ln 2 in two parts, the first so short that n times it is exact.
    const Vec magic = S::set(12582912.0f);
    const Vec shifted = S::fma(x, S::set(1.44269504f), magic), n = S::sub(shifted, magic);
    const Vec f = S::fma(n, S::set(-1.42860682e-6f), S::fma(n, S::set(-0.693145752f), x));
    Vec q = S::fma(f, S::set(1.38144661e-3f), S::set(8.36878084e-3f));
    q = S::fma(f, q, S::set(4.16683927e-2f));
    q = S::fma(f, q, S::set(1.66665196e-1f));
    q = S::fma(f, q, S::set(4.9999994e-1f));
    const Vec power = S::add(S::fma(S::mul(f, f), q, f), S::set(1.0f));
    return S::mul(power, S::power_of_two(shifted));
}

template <class S>
inline typename S::Vec logistic(typename S::Vec v) {
    const typename S::Vec one = S::set(1.0f);
    return S::div(one, S::add(one, exp<S>(S::sub(S::zero(), v))));
}

// The normal distribution's Phi(v) = erfc(-v / sqrt 2) / 2. With a = |v| / sqrt 2, erfc(a) = e^-(a q(a)), q a
// polynomial on [0, 4]; beyond, where a q(a) - a^2 hardly moves, that difference is held.
template <class S>
inline typename S::Vec normal_cdf(typename S::Vec v) {
    using Vec = typename S::Vec;
    const Vec a = S::mul(S::max(v, S::sub(S::zero(), v)), S::set(0.707106781f)), near = S::min(S::set(4.0f), a);
    const Vec t = S::fma(near, S::set(0.5f), S::set(-1.0f));
    constexpr float q[] = {4.16819152e-4f, -3.4538834e-4f,  -3.05903377e-4f, 1.3254896e-3f, -5.54613024e-3f,
                           1.74108464e-2f, -4.59653921e-2f, 1.11807778e-1f,  1.73569047f,   2.6824708f};
    Vec sum = S::set(q[0]);
#pragma GCC unroll 9
    for (size_t i = 1; i < 10; ++i) sum = S::fma(sum, t, S::set(q[i]));
    const Vec beyond = S::sub(S::mul(a, a), S::mul(near, near));
    const Vec half = S::mul(S::set(0.5f), exp<S>(S::sub(S::zero(), S::fma(near, sum, beyond))));
    return S::above_zero(v, S::sub(S::set(1.0f), half), half);
}

// Activations: value(z), and both(z, slope), which also gives the derivative.
template <class S>
struct Relu {
    using Vec = typename S::Vec;
    static Vec value(Vec z) { return S::max(S::zero(), z); }
    static Vec both(Vec z, Vec& slope) {
        slope = S::above_zero(z, S::set(1.0f), S::zero());
        return value(z);
    }
};

template <class S>
struct Silu {
    using Vec = typename S::Vec;
    static Vec value(Vec z) { return S::mul(z, logistic<S>(z)); }
    static Vec both(Vec z, Vec& slope) {
        // 1 - s as e^-z s: where s is near 1 the difference would have lost its digits, and z multiplies it.
        const Vec one = S::set(1.0f), e = exp<S>(S::sub(S::zero(), z)), s = S::div(one, S::add(one, e));
        slope = S::mul(s, S::fma(z, S::mul(e, s), one));
        return S::mul(z, s);
    }
};

template <class S>
struct Gelu {
    using Vec = typename S::Vec;
    static Vec value(Vec z) { return S::mul(z, normal_cdf<S>(z)); }
    static Vec both(Vec z, Vec& slope) {
        const Vec cdf = normal_cdf<S>(z);
        const Vec density = S::mul(S::set(0.398942280f), exp<S>(S::mul(S::mul(z, z), S::set(-0.5f))));
        slope = S::fma(z, density, cdf);
        return S::mul(z, cdf);
    }
};

// u of up to kLordLanes tokens with the tokens in the lanes, (r, kLordLanes); absent tokens are zero.
inline void transpose(const float* u, size_t ldu, size_t tokens, size_t r, float* out) {
    for (size_t j = 0; j < r; ++j) {
        for (size_t m = 0; m < kLordLanes; ++m) out[j * kLordLanes + m] = m < tokens ? u[m * ldu + j] : 0.0f;
    }
}

// Vectors that a row of kLordLanes takes.
template <class S>
constexpr size_t kVectors = kLordLanes / S::kWidth;

template <class S>
inline void preactivation(const LordGate& g, size_t h, const float* u, typename S::Vec z[]) {
    constexpr size_t V = kVectors<S>;
#pragma GCC unroll 4
    for (size_t v = 0; v < V; ++v) z[v] = S::set(g.b1[h]);
    for (size_t j = 0; j < g.r; ++j) {
        const typename S::Vec p = S::set(g.p[h * g.r + j]);
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v) z[v] = S::fma(p, S::load(u + j * kLordLanes + v * S::kWidth), z[v]);
    }
}

template <class S, class A>
void gate(const LordGate& g, const float* u, size_t ldu, size_t rows, float* scratch, float* logit) {
    using Vec = typename S::Vec;
    constexpr size_t V = kVectors<S>, kRun = 32;
    for (size_t m = 0; m < rows; m += kLordLanes) {
        const size_t tokens = rows - m < kLordLanes ? rows - m : kLordLanes;
        transpose(u + m * ldu, ldu, tokens, g.r, scratch);
        Vec total[V], z[V];
        for (size_t v = 0; v < V; ++v) total[v] = S::set(g.b2);
        for (size_t first = 0; first < g.h; first += kRun) {
            const size_t last = first + kRun < g.h ? first + kRun : g.h;
            Vec sum[V];
            for (size_t v = 0; v < V; ++v) sum[v] = S::zero();
            for (size_t h = first; h < last; ++h) {
                preactivation<S>(g, h, scratch, z);
                const Vec w2 = S::set(g.w2[h]);
#pragma GCC unroll 4
                for (size_t v = 0; v < V; ++v) sum[v] = S::fma(w2, A::value(z[v]), sum[v]);
            }
            for (size_t v = 0; v < V; ++v) total[v] = S::add(total[v], sum[v]);
        }
        float out[kLordLanes];
        for (size_t v = 0; v < V; ++v) S::store(out + v * S::kWidth, total[v]);
        memcpy(logit + m, out, tokens * sizeof(float));
    }
}

template <class S, class A>
void gate_backward(const LordGate& g, const LordGateGrads& to, size_t rows) {
    using Vec = typename S::Vec;
    constexpr size_t V = kVectors<S>, W = S::kWidth, L = kLordLanes;
    float *u = to.scratch, *du = to.scratch + g.r * L;
    for (size_t m = 0; m < rows; m += L) {
        const size_t tokens = rows - m < L ? rows - m : L;
        transpose(to.u + m * g.r, g.r, tokens, g.r, u);
        memset(du, 0, g.r * L * sizeof(float));
        float dlogit[L] = {};
        memcpy(dlogit, to.dlogit + m, tokens * sizeof(float));
        for (size_t h = 0; h < g.h; ++h) {
            Vec z[V], da[V], dw2[V];
            preactivation<S>(g, h, u, z);
            const Vec w2 = S::set(g.w2[h]);
#pragma GCC unroll 4
            for (size_t v = 0; v < V; ++v) {
                Vec slope;
                const Vec grad = S::load(dlogit + v * W), value = A::both(z[v], slope);
                da[v] = S::mul(S::mul(grad, w2), slope);
                dw2[v] = S::mul(grad, value);
            }
            if (to.du != nullptr) {
                for (size_t j = 0; j < g.r; ++j) {
                    const Vec p = S::set(g.p[h * g.r + j]);
#pragma GCC unroll 4
                    for (size_t v = 0; v < V; ++v) {
                        float* sum = du + j * L + v * W;
                        S::store(sum, S::fma(da[v], p, S::load(sum)));
                    }
                }
            }
            if (to.lanes != nullptr) {
                float* lanes = to.lanes + h * (g.r + 2) * L;
#pragma GCC unroll 4
                for (size_t v = 0; v < V; ++v) {
                    float* sum = lanes + v * W;
                    for (size_t j = 0; j < g.r; ++j, sum += L) {
                        S::store(sum, S::fma(da[v], S::load(u + j * L + v * W), S::load(sum)));
                    }
                    S::store(sum, S::add(da[v], S::load(sum)));
                    S::store(sum + L, S::add(dw2[v], S::load(sum + L)));
                }
            }
        }
        if (to.du != nullptr) {
            for (size_t l = 0; l < tokens; ++l) {
                for (size_t j = 0; j < g.r; ++j) to.du[(m + l) * to.lddu + j] += du[j * L + l];
            }
        }
    }
}

template <class S>
void sigmoid(const float* logit, float* lam, size_t count) {
    size_t i = 0;
    for (; i + S::kWidth <= count; i += S::kWidth) S::store(lam + i, logistic<S>(S::load(logit + i)));
    if (i == count) return;
    float part[S::kWidth] = {};
    memcpy(part, logit + i, (count - i) * sizeof(float));
    S::store(part, logistic<S>(S::load(part)));
    memcpy(lam + i, part, (count - i) * sizeof(float));
}

template <class S>
void flush(float* lanes, size_t rows, double* sums) {
    constexpr size_t W = S::kWidth / 2;
    for (size_t i = 0; i < rows; ++i) {
        typename S::Wide sum = S::zero_wide();
#pragma GCC unroll 8
        for (size_t l = 0; l < kLordLanes; l += W) sum = S::add_wide(sum, S::load_wide(lanes + i * kLordLanes + l));
        sums[i] += S::sum_wide(sum);
    }
    memset(lanes, 0, rows * kLordLanes * sizeof(float));
}

}  // namespace
}  // namespace lordfast
