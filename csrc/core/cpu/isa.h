// The instruction sets that kernels are compiled for, and the choice of one at run time.
#pragma once

#include <string>
#include <vector>

namespace lordfast {

// Kernels that have nothing of their own for avx512_bf16 use their avx512 ones there.
enum class Isa { portable, avx2, avx512, avx512_bf16 };

const char* name(Isa isa);

// What this build has kernels for and this CPU and operating system can run, best first. Never empty.
const std::vector<Isa>& available_isas();

// The best of them, or what the environment variable LORDFAST_CPU_ISA names. Read at every call.
// Throws std::invalid_argument for a name that means nothing, or that is not available here.
Isa active_isa();

}  // namespace lordfast
