#include "core/cpu/lord_unit.h"
#include "core/cpu/simd_avx2.h"

namespace lordfast {

constexpr LordKernels kLordAvx2 = lord_kernels<SimdAvx2>();

}  // namespace lordfast
