#include "core/pgd_step.h"

#include <cmath>
#include <vector>

#include "core/cpu/parallel.h"
#include "core/cpu/pgd_step_kernels.h"
#include "core/pgd_scale.h"

namespace lordfast {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kWorthThreads = 32768;

const PgdKernels& kernels(Isa isa, DType dtype) {
    const int index = static_cast<int>(dtype);
#ifdef LORDFAST_X86
    if (isa == Isa::avx512 || isa == Isa::avx512_bf16) return kPgdAvx512[index];
    if (isa == Isa::avx2) return kPgdAvx2[index];
#endif
    (void)isa;
    return kPgdPortable[index];
}

// The four arrays, from an element on.
struct View {
    const char *x_adv, *x_orig, *grad;
    char* out;
    int64_t itemsize;

    explicit View(const PgdStep& s)
        : x_adv(static_cast<const char*>(s.x_adv)),
          x_orig(static_cast<const char*>(s.x_orig)),
          grad(static_cast<const char*>(s.grad)),
          out(static_cast<char*>(s.out)),
          itemsize(lordfast::itemsize(s.dtype)) {}

    View from(int64_t element) const {
        View v = *this;
        const int64_t offset = element * itemsize;
        v.x_adv += offset, v.x_orig += offset, v.grad += offset, v.out += offset;
        return v;
    }
};

void step_linf(const PgdStep& s, const PgdKernels& kernel, int threads) {
    const LinfParams params{s.direction * s.step_size, s.eps, s.low, s.high};
    const int64_t total = s.batch * s.numel;
    const int64_t chunks = (total + kPgdChunk - 1) / static_cast<int64_t>(kPgdChunk);
    const View all(s);
    parallel_runs(chunks, threads, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * static_cast<int64_t>(kPgdChunk);
        const int64_t last = std::min(total, end * static_cast<int64_t>(kPgdChunk));
        const View v = all.from(first);
        kernel.linf(v.x_adv, v.x_orig, v.grad, v.out, static_cast<size_t>(last - first), params);
    });
}

// Calls kernel(element, count) for chunks [begin, end) of a sample.
template <class Kernel>
void each_chunk(int64_t numel, int64_t begin, int64_t end, const Kernel& kernel) {
    for (int64_t c = begin; c < end; ++c) {
        const int64_t first = c * static_cast<int64_t>(kPgdChunk);
        kernel(c, first, static_cast<size_t>(std::min(numel - first, static_cast<int64_t>(kPgdChunk))));
    }
}

// One sample; the threads share its chunks. partial holds a double for each chunk and is added up in order, whoever
// filled it.
void step_l2_sample(const PgdStep& s, const PgdKernels& kernel, const View& sample, int threads, double* partial,
                    int64_t chunks) {
    const auto ordered_norm = [&] {
        double total = 0.0;
        for (int64_t c = 0; c < chunks; ++c) total += partial[c];
        return std::sqrt(total);
    };
    parallel_runs(chunks, threads, [&](int64_t begin, int64_t end) {
        each_chunk(s.numel, begin, end, [&](int64_t c, int64_t first, size_t n) {
            partial[c] = kernel.l2_grad(sample.from(first).grad, n);
        });
    });
    const L2Params params = l2_params(ordered_norm(), s.direction * s.step_size, s.low, s.high);
    parallel_runs(chunks, threads, [&](int64_t begin, int64_t end) {
        each_chunk(s.numel, begin, end, [&](int64_t c, int64_t first, size_t n) {
            const View v = sample.from(first);
            partial[c] = kernel.l2_dist(v.x_adv, v.x_orig, v.grad, n, params);
        });
    });
    const float shrink = l2_shrink(ordered_norm(), s.eps);
    parallel_runs(chunks, threads, [&](int64_t begin, int64_t end) {
        each_chunk(s.numel, begin, end, [&](int64_t, int64_t first, size_t n) {
            const View v = sample.from(first);
            kernel.l2_write(v.x_adv, v.x_orig, v.grad, v.out, n, params, shrink);
        });
    });
}

void step_l2(const PgdStep& s, const PgdKernels& kernel, int threads) {
    const int64_t chunks = (s.numel + kPgdChunk - 1) / static_cast<int64_t>(kPgdChunk);
    const View all(s);
    // Whole samples to each thread where there are enough: then all three passes of a sample run in one core's cache.
    const bool by_sample = s.batch >= threads;
    const int64_t rows = by_sample ? threads : 1;
    std::vector<double> partials(static_cast<size_t>(rows * chunks));
    if (!by_sample) {
        for (int64_t b = 0; b < s.batch; ++b) {
            step_l2_sample(s, kernel, all.from(b * s.numel), threads, partials.data(), chunks);
        }
        return;
    }
    const int64_t each = (s.batch + rows - 1) / rows;
    parallel_runs(rows, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            for (int64_t b = row * each; b < std::min(s.batch, (row + 1) * each); ++b) {
                step_l2_sample(s, kernel, all.from(b * s.numel), 1, partials.data() + row * chunks, chunks);
            }
        }
    });
}

}  // namespace

void pgd_step(const PgdStep& step, Isa isa, int threads) {
    const int64_t total = step.batch * step.numel;
    if (total == 0) return;
    const PgdKernels& kernel = kernels(isa, step.dtype);
    const int useful = total < kWorthThreads ? 1 : threads;
    if (step.norm == Norm::linf) {
        step_linf(step, kernel, useful);
    } else {
        step_l2(step, kernel, useful);
    }
}

}  // namespace lordfast
