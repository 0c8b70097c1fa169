// The products of lord_forward and lord_backward over a vector class (simd.h): a tall matrix, read once and converted
// on load, with a thin fp32 one. A register tile of rows x vectors each; what a tile leaves over takes the same
// arithmetic in narrower tiles, so that a row's bits do not depend on the rows around it.
#pragma once

#include "core/cpu/lord_kernels.h"
#include "core/cpu/simd.h"

namespace lordfast {
namespace {

// Fewer than kWidth elements in a vector's place, zeros behind them.
template <class S, class T>
struct PartOf {
    T data[S::kWidth];
    PartOf(const T* from, size_t count) {
        memset(data, 0, sizeof(data));
        memcpy(data, from, count * sizeof(T));
    }
};

// ---- project ----

constexpr size_t kLongestRun = 24;

template <class S, size_t R, class T>
inline void project_tile(const T* in, size_t ld, size_t k, const float* w, size_t ldw, float* out, size_t ldo) {
    using Vec = typename S::Vec;
    constexpr size_t J = kLordGroup, W = S::kWidth;
    const size_t full = k / W, runs = full / (kLongestRun + 1) + 1, run = (full + runs - 1) / runs;
    for (size_t r = 0; r < R; ++r) memset(out + r * ldo, 0, J * sizeof(float));
    for (size_t first = 0; first < full || (first == 0 && k != 0); first += run) {
        Vec acc[R][J];
#pragma GCC unroll 4
        for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (size_t j = 0; j < J; ++j) acc[r][j] = S::zero();
        }
        const size_t last = first + run < full ? first + run : full;
        for (size_t v = first; v < last; ++v) {
            Vec wv[J];
#pragma GCC unroll 4
            for (size_t j = 0; j < J; ++j) wv[j] = S::load(w + j * ldw + v * W);
#pragma GCC unroll 4
            for (size_t r = 0; r < R; ++r) {
                const Vec x = S::load(in + r * ld + v * W);
#pragma GCC unroll 4
                for (size_t j = 0; j < J; ++j) acc[r][j] = S::fma(x, wv[j], acc[r][j]);
            }
        }
        if (last == full && full * W != k) {
            for (size_t r = 0; r < R; ++r) {
                const PartOf<S, T> part(in + r * ld + full * W, k - full * W);
                const Vec x = S::load(part.data);
#pragma GCC unroll 4
                for (size_t j = 0; j < J; ++j) acc[r][j] = S::fma(x, S::load(w + j * ldw + full * W), acc[r][j]);
            }
        }
#pragma GCC unroll 4
        for (size_t r = 0; r < R; ++r) S::add_sums(out + r * ldo, acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
        if (run == 0) break;
    }
}

template <class S, class T>
void project(const void* in_, size_t ld, size_t rows, size_t k, const float* w, size_t ldw, size_t columns, float* out,
             size_t ldo) {
    const T* in = static_cast<const T*>(in_);
    size_t m = 0;
    for (; m + S::kRows <= rows; m += S::kRows) {
        for (size_t j = 0; j < columns; j += kLordGroup) {
            project_tile<S, S::kRows>(in + m * ld, ld, k, w + j * ldw, ldw, out + m * ldo + j, ldo);
        }
    }
    for (; m < rows; ++m) {
        for (size_t j = 0; j < columns; j += kLordGroup) {
            project_tile<S, 1>(in + m * ld, ld, k, w + j * ldw, ldw, out + m * ldo + j, ldo);
        }
    }
}

// ---- update ----

template <class S, size_t R, size_t V, bool kAdd, class T>
inline void update_tile(T* y, size_t ld, const float* e, size_t lde, const float* c, size_t ldc, size_t terms) {
    using Vec = typename S::Vec;
    constexpr size_t W = S::kWidth;
    Vec acc[R][V];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v) acc[r][v] = kAdd ? S::load(y + r * ld + v * W) : S::zero();
    }
    for (size_t j = 0; j < terms; ++j) {
        Vec cv[V];
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v) cv[v] = S::load(c + j * ldc + v * W);
#pragma GCC unroll 4
        for (size_t r = 0; r < R; ++r) {
            const Vec x = S::set(e[r * lde + j]);
#pragma GCC unroll 4
            for (size_t v = 0; v < V; ++v) acc[r][v] = S::fma(x, cv[v], acc[r][v]);
        }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v) S::store(y + r * ld + v * W, acc[r][v]);
    }
}

template <class S, size_t R, bool kAdd, class T>
inline void update_rows(T* y, size_t ld, size_t n, const float* e, size_t lde, const float* c, size_t ldc,
                        size_t terms) {
    constexpr size_t W = S::kWidth, V = S::kColumns;
    size_t i = 0;
    for (; i + V * W <= n; i += V * W) update_tile<S, R, V, kAdd>(y + i, ld, e, lde, c + i, ldc, terms);
    for (; i + W <= n; i += W) update_tile<S, R, 1, kAdd>(y + i, ld, e, lde, c + i, ldc, terms);
    if (i == n) return;
    for (size_t r = 0; r < R; ++r) {
        PartOf<S, T> part(y + r * ld + i, n - i);
        update_tile<S, 1, 1, kAdd>(part.data, 0, e + r * lde, lde, c + i, ldc, terms);
        memcpy(y + r * ld + i, part.data, (n - i) * sizeof(T));
    }
}

template <class S, bool kAdd, class T>
inline void update_as(T* y, size_t ld, size_t rows, size_t n, const float* e, size_t lde, const float* c, size_t ldc,
                      size_t terms) {
    size_t m = 0;
    for (; m + S::kRows <= rows; m += S::kRows) {
        update_rows<S, S::kRows, kAdd>(y + m * ld, ld, n, e + m * lde, lde, c, ldc, terms);
    }
    for (; m < rows; ++m) update_rows<S, 1, kAdd>(y + m * ld, ld, n, e + m * lde, lde, c, ldc, terms);
}

template <class S, class T>
void update(void* y, size_t ld, size_t rows, size_t n, const float* e, size_t lde, const float* c, size_t ldc,
            size_t terms, bool add) {
    if (add) {
        update_as<S, true>(static_cast<T*>(y), ld, rows, n, e, lde, c, ldc, terms);
    } else {
        update_as<S, false>(static_cast<T*>(y), ld, rows, n, e, lde, c, ldc, terms);
    }
}

// ---- accumulate ----

// `stored` of the J columns are wanted.
template <class S, size_t J, size_t V, class T>
inline void accumulate_tile(float* g, size_t ldg, const float* e, size_t lde, size_t stored, const T* in, size_t ld,
                            size_t rows) {
    using Vec = typename S::Vec;
    constexpr size_t W = S::kWidth;
    Vec acc[J][V];
#pragma GCC unroll 8
    for (size_t j = 0; j < J; ++j) {
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v) acc[j][v] = S::zero();
    }
    for (size_t m = 0; m < rows; ++m) {
        Vec x[V];
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v) x[v] = S::load(in + m * ld + v * W);
#pragma GCC unroll 8
        for (size_t j = 0; j < J; ++j) {
            const Vec ev = S::set(e[m * lde + j]);
#pragma GCC unroll 4
            for (size_t v = 0; v < V; ++v) acc[j][v] = S::fma(ev, x[v], acc[j][v]);
        }
    }
#pragma GCC unroll 8
    for (size_t j = 0; j < J; ++j) {
        if (j >= stored) break;
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v) {
            float* to = g + j * ldg + v * W;
            S::store(to, S::add(S::load(to), acc[j][v]));
        }
    }
}

template <class S, size_t J, size_t V, class T>
inline void accumulate_columns(float* g, size_t ldg, const float* e, size_t lde, size_t stored, const T* in, size_t ld,
                               size_t rows, size_t n) {
    constexpr size_t W = S::kWidth;
    size_t i = 0;
    for (; i + V * W <= n; i += V * W) accumulate_tile<S, J, V>(g + i, ldg, e, lde, stored, in + i, ld, rows);
    for (; i + W <= n; i += W) accumulate_tile<S, J, 1>(g + i, ldg, e, lde, stored, in + i, ld, rows);
    if (i == n) return;
    constexpr size_t kCopied = 16;
    T copy[kCopied * W];
    memset(copy, 0, sizeof(copy));
    for (size_t m = 0; m < rows; m += kCopied) {
        const size_t count = rows - m < kCopied ? rows - m : kCopied;
        for (size_t l = 0; l < count; ++l) memcpy(copy + l * W, in + (m + l) * ld + i, (n - i) * sizeof(T));
        accumulate_tile<S, J, 1>(g + i, ldg, e + m * lde, lde, stored, copy, W, count);
    }
}

template <class S, class T>
void accumulate(float* g, size_t ldg, const float* e, size_t lde, size_t columns, const void* in_, size_t ld,
                size_t rows, size_t n) {
    constexpr size_t J = kLordGroup, tile = S::kRows * S::kColumns;
    const T* in = static_cast<const T*>(in_);
    size_t j = 0;
    // Twice the columns a pass where the registers allow: a 16-bit input is then converted once for 2r = 8 of them.
    if (tile >= 16) {
        for (; j + J < columns; j += 2 * J) {
            const size_t stored = columns - j < 2 * J ? columns - j : 2 * J;
            accumulate_columns<S, 2 * J, tile / 8>(g + j * ldg, ldg, e + j, lde, stored, in, ld, rows, n);
        }
    }
    for (; j < columns; j += J) {
        const size_t stored = columns - j < J ? columns - j : J;
        accumulate_columns<S, J, tile / 4>(g + j * ldg, ldg, e + j, lde, stored, in, ld, rows, n);
    }
}

// ---- fold ----

template <class S, size_t R>
inline void fold_rows(const float* w1, size_t n, const float* c, size_t ldc, size_t columns, float* p) {
    constexpr size_t J = kLordGroup, W = S::kWidth / 2;
    for (size_t j0 = 0; j0 < columns; j0 += J) {
        typename S::Wide acc[R][J];
        for (size_t r = 0; r < R; ++r) {
            for (size_t j = 0; j < J; ++j) acc[r][j] = S::zero_wide();
        }
        size_t i = 0;
        for (; i + W <= n; i += W) {
            typename S::Wide cv[J];
#pragma GCC unroll 4
            for (size_t j = 0; j < J; ++j) cv[j] = S::load_wide(c + (j0 + j) * ldc + i);
#pragma GCC unroll 4
            for (size_t r = 0; r < R; ++r) {
                const typename S::Wide w = S::load_wide(w1 + r * n + i);
#pragma GCC unroll 4
                for (size_t j = 0; j < J; ++j) acc[r][j] = S::fma_wide(w, cv[j], acc[r][j]);
            }
        }
        for (size_t r = 0; r < R; ++r) {
            for (size_t j = 0; j < J && j0 + j < columns; ++j) {
                double sum = S::sum_wide(acc[r][j]);
                for (size_t l = i; l < n; ++l) {
                    sum += static_cast<double>(w1[r * n + l]) * static_cast<double>(c[(j0 + j) * ldc + l]);
                }
                p[r * columns + j0 + j] = static_cast<float>(sum);
            }
        }
    }
}

template <class S>
void fold(const float* w1, size_t n, size_t rows, const float* c, size_t ldc, size_t columns, float* p) {
    size_t h = 0;
    for (; h + S::kRows <= rows; h += S::kRows) {
        fold_rows<S, S::kRows>(w1 + h * n, n, c, ldc, columns, p + h * columns);
    }
    for (; h < rows; ++h) fold_rows<S, 1>(w1 + h * n, n, c, ldc, columns, p + h * columns);
}

template <class S, class T>
constexpr LordProducts products_for() {
    return {project<S, T>, update<S, T>, accumulate<S, T>};
}

}  // namespace
}  // namespace lordfast
