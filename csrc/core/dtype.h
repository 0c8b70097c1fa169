// Element types of the arrays that kernels read and write.
#pragma once

namespace lordfast {

enum class DType { float32 = 0, bfloat16 = 1, float16 = 2 };

constexpr int itemsize(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

}  // namespace lordfast
