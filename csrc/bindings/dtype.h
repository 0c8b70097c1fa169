// The element type that an argument names.
#pragma once

#include <string>

#include "bindings/checks.h"
#include "core/dtype.h"

namespace lordfast {

inline DType parse_dtype(const std::string& dtype) {
    if (dtype == "float32") return DType::float32;
    if (dtype == "bfloat16") return DType::bfloat16;
    require(dtype == "float16", "dtype", quoted(dtype), "'float32', 'bfloat16' or 'float16'");
    return DType::float16;
}

}  // namespace lordfast
