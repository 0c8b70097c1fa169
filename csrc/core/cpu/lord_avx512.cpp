#include "core/cpu/lord_unit.h"
#include "core/cpu/simd_avx512.h"

namespace lordfast {

constexpr LordKernels kLordAvx512 = lord_kernels<SimdAvx512>();

}  // namespace lordfast
