// A parallel loop over [0, count) in contiguous runs, one a thread.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#    include <omp.h>
#endif

namespace lordfast {

// body(begin, end) must not throw. One thread goes past OpenMP altogether: entering a region costs more than a small
// image, and a process forked from one that used OpenMP can hang in it.
template <class Body>
void parallel_runs(int64_t count, int threads, const Body& body) {
    if (count <= 0) return;
#ifdef _OPENMP
    if (threads > 1) {
#    pragma omp parallel num_threads(threads)
        {
            const int64_t team = omp_get_num_threads(), rank = omp_get_thread_num();
            const int64_t each = (count + team - 1) / team;
            const int64_t begin = std::min(count, rank * each), end = std::min(count, begin + each);
            if (begin < end) body(begin, end);
        }
        return;
    }
#else
    (void)threads;
#endif
    body(int64_t{0}, count);
}

}  // namespace lordfast
