#include "core/cpu/lord_blocks.h"

#include <cstring>

namespace lordfast {
namespace {

// Below this many elements of x and y a second thread costs more than it saves.
constexpr int64_t kWorthThreads = 65536;

bool usable_as_it_is(const LordProblem& p) { return p.r % kLordGroup == 0 && p.k % kLordPad == 0; }

size_t packed_a(const LordProblem& p) {
    return usable_as_it_is(p) ? 0 : round_up(p.r, kLordGroup) * round_up(p.k, kLordPad);
}

size_t packed_c(const LordProblem& p) { return round_up(2 * p.r, kLordGroup) * round_up(p.n, kLordPad); }

}  // namespace

const LordKernels& lord_kernels(Isa isa) {
#ifdef LORDFAST_X86
    if (isa == Isa::avx512_bf16) return kLordAvx512Bf16;
    if (isa == Isa::avx512) return kLordAvx512;
    if (isa == Isa::avx2) return kLordAvx2;
#endif
    (void)isa;
    return kLordPortable;
}

int useful_threads(const LordProblem& p, const Chunks& chunks, int threads) {
    if (chunks.rows * (p.k + p.n) < kWorthThreads) return 1;
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, chunks.count)));
}

size_t LordWeights::bytes(const LordProblem& p) {
    return Scratch::bytes<float>(packed_a(p)) + Scratch::bytes<float>(packed_c(p)) + Scratch::bytes<float>(p.h * p.r);
}

LordWeights::LordWeights(const LordProblem& p, const LordKernels& kernels, Scratch& scratch) {
    const size_t r = p.r, k = p.k, n = p.n;
    lda = round_up(k, kLordPad);
    ldc = round_up(n, kLordPad);
    if (usable_as_it_is(p)) {
        a = p.a;
    } else {
        float* to = scratch.take<float>(packed_a(p));
        std::memset(to, 0, packed_a(p) * sizeof(float));
        for (size_t j = 0; j < r; ++j) std::copy_n(p.a + j * k, k, to + j * lda);
        a = to;
    }

    float* to = scratch.take<float>(packed_c(p));
    std::memset(to, 0, packed_c(p) * sizeof(float));
    for (size_t i = 0; i < n; ++i) {
        for (size_t j = 0; j < r; ++j) {
            to[j * ldc + i] = p.scaling * p.b[i * r + j];
            to[(r + j) * ldc + i] = p.scaling * p.b_adv[i * r + j];
        }
    }
    c = to;

    float* folded = scratch.take<float>(p.h * r);
    kernels.fold(p.w1, n, p.h, c, ldc, r, folded);
    gate = {folded, p.b1, p.w2, *p.b2, static_cast<size_t>(p.h), r};
}

void mix(const float* u, const float* lam, size_t rows, size_t r, bool plain, bool gated, float* e, size_t lde) {
    for (size_t m = 0; m < rows; ++m) {
        float* to = e + m * lde;
        if (plain) {
            for (size_t j = 0; j < r; ++j) to[j] = u[m * r + j];
            to += r;
        }
        if (gated) {
            for (size_t j = 0; j < r; ++j) to[j] = lam[m] * u[m * r + j];
        }
    }
}

}  // namespace lordfast
