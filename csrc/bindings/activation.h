// The activation that an argument names.
#pragma once

#include <string>

#include "bindings/checks.h"
#include "core/activation.h"

namespace lordfast {

inline Activation parse_activation(const std::string& activation) {
    if (activation == "relu") return Activation::relu;
    if (activation == "silu") return Activation::silu;
    require(activation == "gelu", "activation", quoted(activation), "'relu', 'silu' or 'gelu'");
    return Activation::gelu;
}

}  // namespace lordfast
