// LoRD's forward after the base product, one pass over blocks of rows: u = x A^T, gate, y += E C^T.
//
// Bytes: x once, y once in and once out; all else (u, logits, packed weights) is below 5 % of that. Operations: M (2 K
// r + H (2 r + 25) + 4 N r), for M = 4096, K = N = 320, r = 4, H = 64 about 40 million, 0.5 ms on one core with AVX-512
// (10.5 MB in the second-level cache would take less). In place, behind the base product, it takes 0.6 (bf16) to 0.9 ms
// (fp32): x and y come from memory, and the rest is waiting for it. So
//  * y's rows are asked for while u is computed, and the next block's x while y is: without, 0.3 to 0.5 ms more;
//  * blocks of 32 rows. 16 and 64 are no better, nor is asking for 8 or 16 rows at a time instead of 4.
// Two operand tricks for bf16 were left out, because the products already run at the rate of fp32: the dot-product
// instruction, which needs A in two parts to keep the gate's digits, and taking even and odd elements apart.
#include <cstring>

#include "core/cpu/lord_blocks.h"

namespace lordfast {
namespace {

// One thread's working memory.
struct Workspace {
    float *u, *e, *lam, *gate;
    size_t ldu, lde;

    static size_t bytes(const LordProblem& p) {
        return Scratch::bytes<float>(kLordBlock * round_up(p.r, kLordGroup)) +
               Scratch::bytes<float>(kLordBlock * 2 * p.r) + Scratch::bytes<float>(kLordBlock) +
               Scratch::bytes<float>(p.r * kLordLanes);
    }
    void take(const LordProblem& p, Scratch& scratch) {
        ldu = round_up(p.r, kLordGroup), lde = 2 * p.r;
        u = scratch.take<float>(kLordBlock * ldu);
        e = scratch.take<float>(kLordBlock * lde);
        lam = scratch.take<float>(kLordBlock);
        gate = scratch.take<float>(p.r * kLordLanes);
    }
};

class Forward {
  public:
    Forward(const LordProblem& problem, const LordForward& io, Isa isa, int threads)
        : p_(problem),
          io_(io),
          kernels_(lord_kernels(isa)),
          products_(kernels_.products[static_cast<int>(problem.dtype)]),
          x_row_(problem.k * itemsize(problem.dtype)),
          y_row_(problem.n * itemsize(problem.dtype)),
          chunks_(problem.batch * problem.tokens),
          threads_(useful_threads(problem, chunks_, threads)),
          scratch_(
              LordWeights::bytes(problem) + threads_ * (Scratch::bytes<Workspace>(1) + Workspace::bytes(problem)) +
              (problem.per_sample ? Scratch::bytes<float>(chunks_.rows) + Scratch::bytes<float>(problem.batch) : 0)),
          weights_(problem, kernels_, scratch_),
          workspaces_(scratch_.take<Workspace>(threads_)) {
        for (int t = 0; t < threads_; ++t) workspaces_[t].take(p_, scratch_);
    }

    void run() {
        if (p_.per_sample) {
            run_by_sample();
            return;
        }
        chunks_.each(threads_, [&](int64_t chunk, int64_t t) {
            Workspace& w = workspaces_[t];
            chunks_.blocks(chunk, [&](int64_t m, size_t rows) {
                down(w, m, rows, io_.gate_logit + m);
                kernels_.sigmoid(io_.gate_logit + m, w.lam, rows);
                up(w, m, rows);
            });
        });
    }

  private:
    void run_by_sample() {
        float* logits = scratch_.take<float>(chunks_.rows);
        float* lam = scratch_.take<float>(p_.batch);
        chunks_.each(threads_, [&](int64_t chunk, int64_t t) {
            chunks_.blocks(chunk, [&](int64_t m, size_t rows) { down(workspaces_[t], m, rows, logits + m); });
        });
        for (int64_t s = 0; s < p_.batch; ++s) {
            double sum = 0.0;
            for (int64_t m = s * p_.tokens; m < (s + 1) * p_.tokens; ++m) sum += logits[m];
            // A sample without tokens gets the logit 0 (lambda 1/2), where a mean would be NaN.
            io_.gate_logit[s] = p_.tokens ? static_cast<float>(sum / static_cast<double>(p_.tokens)) : 0.0f;
        }
        kernels_.sigmoid(io_.gate_logit, lam, p_.batch);
        chunks_.each(threads_, [&](int64_t chunk, int64_t t) {
            Workspace& w = workspaces_[t];
            chunks_.blocks(chunk, [&](int64_t m, size_t rows) {
                for (size_t i = 0; i < rows; ++i) w.lam[i] = lam[(m + static_cast<int64_t>(i)) / p_.tokens];
                up(w, m, rows);
            });
        });
    }

    // u and the logits of a block.
    void down(Workspace& w, int64_t m, size_t rows, float* logit) {
        const bool y_is_next = io_.has_base && !p_.per_sample;
        const char* x = row_of(io_.x, x_row_, m);
        in_slices(rows, kLordSlice, {y_is_next ? row_of(io_.y, y_row_, m) : nullptr, y_row_, rows},
                  [&](size_t i, size_t part) {
                      float* u = w.u + i * w.ldu;
                      products_.project(x + i * x_row_, p_.k, part, p_.k, weights_.a, weights_.lda, p_.r, u, w.ldu);
                  });
        for (size_t i = 0; i < rows; ++i) {
            std::memcpy(io_.u + (m + static_cast<int64_t>(i)) * p_.r, w.u + i * w.ldu, p_.r * sizeof(float));
        }
        kernels_.gate[static_cast<int>(p_.activation)](weights_.gate, w.u, w.ldu, rows, w.gate, logit);
    }

    // y of a block, from u and w.lam.
    void up(Workspace& w, int64_t m, size_t rows) {
        mix(io_.u + m * p_.r, w.lam, rows, p_.r, true, true, w.e, w.lde);
        const int64_t next = std::min(chunks_.rows, m + kLordBlock);
        const char* ahead = p_.per_sample ? row_of(io_.y, y_row_, next) : row_of(io_.x, x_row_, next);
        char* y = row_of(io_.y, y_row_, m);
        in_slices(rows, kLordSlice, {ahead, p_.per_sample ? y_row_ : x_row_, static_cast<size_t>(chunks_.rows - next)},
                  [&](size_t i, size_t part) {
                      const float* e = w.e + i * w.lde;
                      products_.update(y + i * y_row_, p_.n, part, p_.n, e, w.lde, weights_.c, weights_.ldc, 2 * p_.r,
                                       io_.has_base);
                  });
    }

    const LordProblem& p_;
    const LordForward& io_;
    const LordKernels& kernels_;
    const LordProducts& products_;
    const size_t x_row_, y_row_;  // bytes
    const Chunks chunks_;
    const int threads_;
    Scratch scratch_;
    const LordWeights weights_;
    Workspace* const workspaces_;
};

}  // namespace

void lord_forward(const LordProblem& problem, const LordForward& io, Isa isa, int threads) {
    Forward(problem, io, isa, threads).run();
}

}  // namespace lordfast
