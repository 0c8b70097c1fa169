// LoRD's backward around the base product's dX = dY W, over blocks of rows: v = dY C and dC += E^T dY from one read of
// dY; the gate; then du, dA += du^T x and dX += du A.
//
// Bytes: dY and x once, dX once in and once out. Operations: M (8 N r + H (8 r + 45) + 4 K r), for M = 4096, K = N =
// 320, r = 4, H = 64 about 80 million, 1.0 ms for the kernels one by one on one Zen 4 core with AVX-512. In place it
// takes 1.4 (bf16) to 1.8 ms (fp32), waiting for memory as the forward does, and with the same remedy.
//
// dY's block is read twice, by two kernels, the second time from the cache. The sums over M are per chunk and not per
// thread: the bits would else depend on the number of threads. With one thread a single part is reused, in the cache.
#include <cstring>

#include "core/cpu/lord_blocks.h"

namespace lordfast {
namespace {

// Lane sums of the gate's gradients move on to double after this many rows.
constexpr int64_t kFlushAfter = 256;

// What the wanted gradients ask for.
struct Wants {
    bool du, gate, dlogit, v;
    size_t columns;  // of E in dC = E^T dY

    Wants(const LordProblem& p, const LordBackward& io)
        : du(io.dx != nullptr || io.da != nullptr),
          gate(io.db != nullptr || io.dw1 != nullptr || io.db1 != nullptr || io.dw2 != nullptr),
          dlogit(du || gate || io.db2 != nullptr),
          v(dlogit && io.grad_y != nullptr),
          columns(((io.db != nullptr) + (io.db_adv != nullptr)) * p.r) {}
};

// Sums over M: the whole, or one chunk's part.
struct Sums {
    size_t floats, doubles, dc_size;
    float *dc, *da;         // (columns, padded n), (r, padded k)
    double *gate, *dlogit;  // (h, r + 2), ()

    Sums(const LordProblem& p, const LordBackward& io, const Wants& wants)
        : dc_size(wants.columns * round_up(p.n, kLordPad)) {
        floats = dc_size + (io.da != nullptr ? p.r * round_up(p.k, kLordPad) : 0);
        doubles = (wants.gate ? p.h * (p.r + 2) : 0) + 1;
    }
    size_t bytes() const { return Scratch::bytes<float>(floats) + Scratch::bytes<double>(doubles); }
    void take(Scratch& scratch) {
        dc = scratch.take<float>(floats);
        da = dc + dc_size;
        gate = scratch.take<double>(doubles);
        dlogit = gate + doubles - 1;
    }
    void clear() {
        std::memset(dc, 0, floats * sizeof(float));
        std::memset(gate, 0, doubles * sizeof(double));
    }
    void add(const Sums& part, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) dc[i] += part.dc[i];
    }
    void add_gate(const Sums& part) {
        for (size_t i = 0; i < doubles; ++i) gate[i] += part.gate[i];
    }
};

// One thread's working memory.
struct Workspace {
    float *v, *du, *e, *lam, *dlogit, *gate, *lanes;

    static size_t bytes(const LordProblem& p, const Wants& wants) {
        return Scratch::bytes<float>(kLordBlock * round_up(2 * p.r, kLordGroup)) * 2 +
               Scratch::bytes<float>(kLordBlock * round_up(p.r, kLordGroup)) + Scratch::bytes<float>(kLordBlock) * 2 +
               Scratch::bytes<float>(2 * p.r * kLordLanes) + Scratch::bytes<float>(lane_count(p, wants));
    }
    static size_t lane_count(const LordProblem& p, const Wants& wants) {
        return wants.gate ? p.h * (p.r + 2) * kLordLanes : 0;
    }
    void take(const LordProblem& p, const Wants& wants, Scratch& scratch) {
        const size_t wide = kLordBlock * round_up(2 * p.r, kLordGroup), thin = kLordBlock * round_up(p.r, kLordGroup);
        v = scratch.take<float>(wide);
        e = scratch.take<float>(wide);
        du = scratch.take<float>(thin);
        lam = scratch.take<float>(kLordBlock);
        dlogit = scratch.take<float>(kLordBlock);
        gate = scratch.take<float>(2 * p.r * kLordLanes);
        lanes = wants.gate ? scratch.take<float>(lane_count(p, wants)) : nullptr;
        // Of the columns that pad e and du up to the group nothing is kept; zeros, lest a NaN or a subnormal slow them.
        std::memset(e, 0, wide * sizeof(float));
        std::memset(du, 0, thin * sizeof(float));
        if (wants.gate) std::memset(lanes, 0, lane_count(p, wants) * sizeof(float));
    }
};

class Backward {
  public:
    Backward(const LordProblem& problem, const LordBackward& io, Isa isa, int threads)
        : p_(problem),
          io_(io),
          wants_(problem, io),
          kernels_(lord_kernels(isa)),
          products_(kernels_.products[static_cast<int>(problem.dtype)]),
          x_row_(problem.k * itemsize(problem.dtype)),
          y_row_(problem.n * itemsize(problem.dtype)),
          chunks_(problem.batch * problem.tokens),
          threads_(useful_threads(problem, chunks_, threads)),
          slots_(threads_ > 1 ? chunks_.count : 1),
          ldv_(round_up(2 * problem.r, kLordGroup)),
          ldu_(round_up(problem.r, kLordGroup)),
          total_(problem, io, wants_),
          scratch_(LordWeights::bytes(problem) + bytes()),
          weights_(problem, kernels_, scratch_),
          workspaces_(scratch_.take<Workspace>(threads_)),
          parts_(scratch_.take<Sums>(slots_)) {
        for (int t = 0; t < threads_; ++t) workspaces_[t].take(p_, wants_, scratch_);
        for (int64_t s = 0; s < slots_; ++s) {
            parts_[s] = total_;
            parts_[s].take(scratch_);
        }
        total_.take(scratch_);
        total_.clear();
    }

    void run() {
        if (p_.per_sample) {
            run_by_sample();
        } else {
            each_block([&](Workspace& w, Sums& sums, int64_t m, size_t rows) {
                kernels_.sigmoid(io_.gate_logit + m, w.lam, rows);
                from_y(w, sums, m, rows, w.du, w.dlogit);
                for (size_t i = 0; i < rows; ++i) {
                    w.dlogit[i] = logit_gradient(w.dlogit[i], w.lam[i], io_.grad_logit, m + static_cast<int64_t>(i));
                }
                through_gate(w, sums, m, rows, w.du);
            });
        }
        finish();
    }

  private:
    size_t bytes() const {
        const size_t by_sample = Scratch::bytes<float>(chunks_.rows * ldu_) + Scratch::bytes<float>(chunks_.rows) +
                                 2 * Scratch::bytes<float>(p_.batch);
        return Scratch::bytes<Workspace>(threads_) + threads_ * Workspace::bytes(p_, wants_) +
               Scratch::bytes<Sums>(slots_) + (slots_ + 1) * total_.bytes() + (p_.per_sample ? by_sample : 0) +
               Scratch::bytes<float>(p_.h * ldu_);
    }

    static float logit_gradient(float dlam, float lam, const float* outside, int64_t index) {
        return dlam * lam * (1.0f - lam) + (outside != nullptr ? outside[index] : 0.0f);
    }

    // body(workspace, sums, first row, rows) for every block; then the chunks' sums are added to total_ in order, which
    // gives the same bits for any number of threads.
    template <class Body>
    void each_block(const Body& body) {
        const bool one_slot = slots_ == 1;
        chunks_.each(threads_, [&](int64_t chunk, int64_t t) {
            Workspace& w = workspaces_[t];
            Sums& sums = parts_[one_slot ? 0 : chunk];
            sums.clear();
            int64_t since_flush = 0;
            chunks_.blocks(chunk, [&](int64_t m, size_t rows) {
                body(w, sums, m, rows);
                since_flush += static_cast<int64_t>(rows);
                if (since_flush >= kFlushAfter) flush(w, sums), since_flush = 0;
            });
            flush(w, sums);
            if (one_slot) {
                total_.add(sums, 0, static_cast<int64_t>(sums.floats));
                total_.add_gate(sums);
            }
        });
        if (one_slot) return;
        parallel_runs(static_cast<int64_t>(total_.floats), threads_, [&](int64_t begin, int64_t end) {
            for (int64_t s = 0; s < slots_; ++s) total_.add(parts_[s], begin, end);
        });
        for (int64_t s = 0; s < slots_; ++s) total_.add_gate(parts_[s]);
    }

    void flush(Workspace& w, Sums& sums) {
        if (wants_.gate) kernels_.flush(w.lanes, p_.h * (p_.r + 2), sums.gate);
    }

    void run_by_sample() {
        float* du = scratch_.take<float>(chunks_.rows * ldu_);
        float* dlam = scratch_.take<float>(chunks_.rows);
        float* lam = scratch_.take<float>(p_.batch);
        float* dlogit = scratch_.take<float>(p_.batch);
        std::memset(du, 0, chunks_.rows * ldu_ * sizeof(float));
        kernels_.sigmoid(io_.gate_logit, lam, p_.batch);
        const auto spread = [&](const float* from, float* to, int64_t m, size_t rows) {
            for (size_t i = 0; i < rows; ++i) to[i] = from[(m + static_cast<int64_t>(i)) / p_.tokens];
        };
        each_block([&](Workspace& w, Sums& sums, int64_t m, size_t rows) {
            spread(lam, w.lam, m, rows);
            from_y(w, sums, m, rows, du + m * ldu_, dlam + m);
        });
        for (int64_t s = 0; s < p_.batch; ++s) {
            double sum = 0.0;
            for (int64_t m = s * p_.tokens; m < (s + 1) * p_.tokens; ++m) sum += dlam[m];
            const float whole = logit_gradient(static_cast<float>(sum), lam[s], io_.grad_logit, s);
            dlogit[s] = whole / static_cast<float>(std::max<int64_t>(p_.tokens, 1));
        }
        each_block([&](Workspace& w, Sums& sums, int64_t m, size_t rows) {
            spread(dlogit, w.dlogit, m, rows);
            through_gate(w, sums, m, rows, du + m * ldu_);
        });
    }

    // From dY, for w.lam: du = v1 + lam v2, dlam = v2 . u, and the sums for dB and dB'.
    void from_y(Workspace& w, Sums& sums, int64_t m, size_t rows, float* du, float* dlam) {
        const size_t r = p_.r;
        const float* u = io_.u + m * p_.r;
        const char* dy = row_of(io_.grad_y, y_row_, m);
        if (wants_.v) {
            const Ahead ahead{p_.per_sample ? nullptr : row_of(io_.da != nullptr ? io_.x : io_.dx, x_row_, m), x_row_,
                              rows};
            in_slices(rows, kLordSlice, ahead, [&](size_t i, size_t part) {
                float* v = w.v + i * ldv_;
                products_.project(dy + i * y_row_, p_.n, part, p_.n, weights_.c, weights_.ldc, 2 * r, v, ldv_);
            });
        }
        for (size_t i = 0; i < rows; ++i) {
            float sum = 0.0f;
            for (size_t j = 0; j < r; ++j) {
                const float v1 = wants_.v ? w.v[i * ldv_ + j] : 0.0f, v2 = wants_.v ? w.v[i * ldv_ + r + j] : 0.0f;
                du[i * ldu_ + j] = v1 + w.lam[i] * v2;
                sum += v2 * u[i * r + j];
            }
            dlam[i] = sum;
        }
        if (dy == nullptr || wants_.columns == 0) return;
        const size_t lde = round_up(wants_.columns, kLordGroup);
        mix(u, w.lam, rows, r, io_.db != nullptr, io_.db_adv != nullptr, w.e, lde);
        products_.accumulate(sums.dc, weights_.ldc, w.e, lde, wants_.columns, dy, p_.n, rows, p_.n);
    }

    // From w.dlogit: the gate's sums, du += da P, and with that dx and the sums for dA.
    void through_gate(Workspace& w, Sums& sums, int64_t m, size_t rows, float* du) {
        if (!wants_.dlogit) return;
        for (size_t i = 0; i < rows; ++i) *sums.dlogit += w.dlogit[i];
        if (!wants_.du && !wants_.gate) return;
        char* dx = row_of(io_.dx, x_row_, m);
        in_slices(rows, kLordLanes, {io_.has_base ? dx : nullptr, x_row_, rows}, [&](size_t i, size_t part) {
            const LordGateGrads grads{io_.u + (m + static_cast<int64_t>(i)) * p_.r, w.dlogit + i, w.gate,
                                      wants_.du ? du + i * ldu_ : nullptr,          ldu_,         w.lanes};
            kernels_.gate_backward[static_cast<int>(p_.activation)](weights_.gate, grads, part);
        });
        if (io_.da != nullptr) {
            const char* x = row_of(io_.x, x_row_, m);
            products_.accumulate(sums.da, weights_.lda, du, ldu_, p_.r, x, p_.k, rows, p_.k);
        }
        if (io_.dx == nullptr) return;
        const int64_t next = std::min(chunks_.rows, m + kLordBlock);
        const Ahead ahead{p_.per_sample ? nullptr : row_of(io_.grad_y, y_row_, next), y_row_,
                          static_cast<size_t>(chunks_.rows - next)};
        in_slices(rows, kLordSlice, ahead, [&](size_t i, size_t part) {
            products_.update(dx + i * x_row_, p_.k, part, p_.k, du + i * ldu_, ldu_, weights_.a, weights_.lda, p_.r,
                             io_.has_base);
        });
    }

    // The sums become the gradients.
    void finish() {
        const size_t r = p_.r, n = p_.n, k = p_.k, h = p_.h;
        if (wants_.gate) {
            float* dp = scratch_.take<float>(h * ldu_);
            std::memset(dp, 0, h * ldu_ * sizeof(float));
            for (size_t i = 0; i < h; ++i) {
                const double* row = total_.gate + i * (r + 2);
                for (size_t j = 0; j < r; ++j) dp[i * ldu_ + j] = static_cast<float>(row[j]);
                if (io_.db1 != nullptr) io_.db1[i] = static_cast<float>(row[r]);
                if (io_.dw2 != nullptr) io_.dw2[i] = static_cast<float>(row[r + 1]);
            }
            const LordProducts& plain = kernels_.products[static_cast<int>(DType::float32)];
            if (io_.dw1 != nullptr) plain.update(io_.dw1, n, h, n, dp, ldu_, weights_.c, weights_.ldc, r, false);
            for (size_t i = 0; io_.db != nullptr && i < h; i += kLordBlock) {
                const size_t rows = std::min<size_t>(kLordBlock, h - i);
                plain.accumulate(total_.dc, weights_.ldc, dp + i * ldu_, ldu_, r, p_.w1 + i * n, n, rows, n);
            }
        }
        if (io_.db2 != nullptr) *io_.db2 = static_cast<float>(*total_.dlogit);
        if (io_.da != nullptr) {
            for (size_t j = 0; j < r; ++j) std::memcpy(io_.da + j * k, total_.da + j * weights_.lda, k * sizeof(float));
        }
        const float* dc = total_.dc;
        for (float* grad : {io_.db, io_.db_adv}) {
            if (grad == nullptr) continue;
            for (size_t i = 0; i < n; ++i) {
                for (size_t j = 0; j < r; ++j) grad[i * r + j] = p_.scaling * dc[j * weights_.ldc + i];
            }
            dc += r * weights_.ldc;
        }
    }

    const LordProblem& p_;
    const LordBackward& io_;
    const Wants wants_;
    const LordKernels& kernels_;
    const LordProducts& products_;
    const size_t x_row_, y_row_;  // bytes
    const Chunks chunks_;
    const int threads_;
    const int64_t slots_;
    const size_t ldv_, ldu_;
    Sums total_;
    Scratch scratch_;
    const LordWeights weights_;
    Workspace* const workspaces_;
    Sums* const parts_;
};

}  // namespace

void lord_backward(const LordProblem& problem, const LordBackward& io, Isa isa, int threads) {
    Backward(problem, io, isa, threads).run();
}

}  // namespace lordfast
