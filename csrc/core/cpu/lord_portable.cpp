#include "core/cpu/lord_unit.h"
#include "core/cpu/simd_portable.h"

namespace lordfast {

constexpr LordKernels kLordPortable = lord_kernels<SimdPortable>();

}  // namespace lordfast
