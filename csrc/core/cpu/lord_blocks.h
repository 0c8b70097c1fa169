// What lord_forward and lord_backward share on their way through the rows: scratch, chunks, packed weights.
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>

#include "core/cpu/lord.h"
#include "core/cpu/lord_kernels.h"
#include "core/cpu/parallel.h"

namespace lordfast {

// Rows that are taken through all steps together, so that the second step finds them in the cache.
constexpr int64_t kLordBlock = 32;
// Rows between two requests for memory ahead.
constexpr size_t kLordSlice = 4;

constexpr size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// One allocation, handed out in pieces that start on a cache line. Not initialised.
class Scratch {
  public:
    explicit Scratch(size_t bytes)
        : memory_(static_cast<char*>(::operator new(bytes + kLine, std::align_val_t(kLine)))), next_(memory_) {}
    ~Scratch() { ::operator delete(memory_, std::align_val_t(kLine)); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    template <class T>
    static constexpr size_t bytes(size_t count) {
        return round_up(count * sizeof(T), kLine);
    }
    template <class T>
    T* take(size_t count) {
        T* piece = reinterpret_cast<T*>(next_);
        next_ += bytes<T>(count);
        return piece;
    }

  private:
    static constexpr size_t kLine = 64;
    char *memory_, *next_;
};

// Row m of an array whose rows have `row` bytes; null if the array is.
inline const char* row_of(const void* array, size_t row, int64_t m) {
    return array == nullptr ? nullptr : static_cast<const char*>(array) + m * static_cast<int64_t>(row);
}
inline char* row_of(void* array, size_t row, int64_t m) {
    return const_cast<char*>(row_of(static_cast<const void*>(array), row, m));
}

// Rows of an array that a later step reads, asked for while an earlier one computes: the products need so few
// operations for each byte that a block otherwise waits for memory and computes in turns.
struct Ahead {
    const char* data;  // null asks for nothing
    size_t row, rows;  // bytes of a row, number of rows

    // The `count` rows from `first` on, as far as there are any.
    void fetch(size_t first, size_t count) const {
        if (data == nullptr) return;
        const size_t end = row * std::min(rows, first + count);
        for (size_t i = row * first; i < end; i += 64) __builtin_prefetch(data + i, 0, 2);
    }
};

// body(first, rows) over a block in slices of at most `size`, each time asking for as many rows ahead.
template <class Body>
void in_slices(size_t rows, size_t size, const Ahead& ahead, const Body& body) {
    for (size_t i = 0; i < rows; i += size) {
        const size_t part = std::min(size, rows - i);
        ahead.fetch(i, part);
        body(i, part);
    }
}

// The rows in chunks, the unit of a thread's work and of a partial sum.
struct Chunks {
    int64_t rows, size, count;

    explicit Chunks(int64_t m)
        : rows(m),
          size(std::max<int64_t>(64, static_cast<int64_t>(round_up(static_cast<size_t>(m + 63) / 64, 16)))),
          count((m + size - 1) / size) {}

    // body(chunk, thread), the chunks of a thread in order. body must not throw.
    template <class Body>
    void each(int threads, const Body& body) const {
        const int64_t per_thread = (count + threads - 1) / threads;
        parallel_runs(threads, threads, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const int64_t last = std::min(count, (t + 1) * per_thread);
                for (int64_t c = t * per_thread; c < last; ++c) body(c, t);
            }
        });
    }

    // body(first row, rows) for the blocks of a chunk.
    template <class Body>
    void blocks(int64_t chunk, const Body& body) const {
        const int64_t end = std::min(rows, (chunk + 1) * size);
        for (int64_t m = chunk * size; m < end; m += kLordBlock)
            body(m, static_cast<size_t>(std::min(kLordBlock, end - m)));
    }
};

const LordKernels& lord_kernels(Isa isa);

// How many of the threads are worth waking.
int useful_threads(const LordProblem& problem, const Chunks& chunks, int threads);

// The small matrices as the kernels want them.
struct LordWeights {
    const float* a;  // (r, k), rows padded in number and length
    size_t lda;
    const float* c;  // (2 r, n) = s [B, B']^T, rows padded in number and length
    size_t ldc;
    LordGate gate;

    static size_t bytes(const LordProblem& problem);
    LordWeights(const LordProblem& problem, const LordKernels& kernels, Scratch& scratch);
};

// e[m] = [u[m] if plain, lam[m] u[m] if gated], lde apart. The columns behind are left alone.
void mix(const float* u, const float* lam, size_t rows, size_t r, bool plain, bool gated, float* e, size_t lde);

}  // namespace lordfast
