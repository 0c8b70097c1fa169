#include "core/cpu/pgd_step_impl.h"
#include "core/cpu/simd_portable.h"

namespace lordfast {
namespace {

struct Portable : SimdPortable {
    static Vec sign(Vec g) { return select(g > Vec{}, set(1.0f), select(g < Vec{}, set(-1.0f), Vec{})); }
    static Vec clamp(Vec v, Vec lo, Vec hi) {
        const Vec inside = min(max(v, lo), hi);
        return select((v != v) | (lo != lo) | (hi != hi), set(__builtin_nanf("")), inside);
    }
    static Vec clamp_fixed(Vec v, Vec lo, Vec hi) { return min(hi, max(lo, v)); }

    struct Acc {
        Wide lane[kLanes / 2] = {};

        void add_squares(Vec v, size_t j) {
            const Wide low = {v[0], v[1]}, high = {v[2], v[3]};
            lane[j / 2] += low * low;
            lane[j / 2 + 1] += high * high;
        }
        double sum() const {
            double total = 0.0;
            for (size_t j = 0; j < kLanes; ++j) total += lane[j / 2][j % 2];
            return total;
        }
    };
};

}  // namespace

constexpr PgdKernels kPgdPortable[3] = {kernels_for<Portable, float>(), kernels_for<Portable, Bf16>(),
                                        kernels_for<Portable, Fp16>()};

}  // namespace lordfast
