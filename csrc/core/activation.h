// The gate's activations.
#pragma once

namespace lordfast {

enum class Activation { relu = 0, silu = 1, gelu = 2 };

}  // namespace lordfast
