#include <cstdlib>
#include <stdexcept>

#include "core/cpu/isa.h"

#ifdef LORDFAST_X86
#    include <cpuid.h>
#endif

namespace lordfast {
namespace {

constexpr const char* kVariable = "LORDFAST_CPU_ISA";

#ifdef LORDFAST_X86

bool bit(unsigned reg, int index) { return (reg >> index) & 1u; }

// Which register files the operating system saves on a context switch. A CPU's AVX-512 is useless without it.
unsigned saved_state() {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

struct X86Features {
    bool avx2 = false;    // with FMA and F16C, which every such CPU has but a hypervisor may hide
    bool avx512 = false;  // F, BW, DQ and VL, on top of avx2
    bool avx512_bf16 = false;
};

X86Features detect() {
    X86Features found;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const bool osxsave = bit(c, 27), fma = bit(c, 12), f16c = bit(c, 29);
    if (!osxsave) return found;  // xgetbv would be an illegal instruction
    const unsigned state = saved_state();
    constexpr unsigned ymm = 0x06, zmm = 0xe6;  // XMM and YMM; also the mask registers and both halves of ZMM
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    const unsigned last_subleaf = a;
    found.avx2 = (state & ymm) == ymm && fma && f16c && bit(b, 5);
    found.avx512 = found.avx2 && (state & zmm) == zmm && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
    if (last_subleaf < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return found;
    found.avx512_bf16 = found.avx512 && bit(a, 5);
    return found;
}

#endif

std::vector<Isa> find_isas() {
    std::vector<Isa> isas;
#ifdef LORDFAST_X86
    const X86Features features = detect();
    if (features.avx512_bf16) isas.push_back(Isa::avx512_bf16);
    if (features.avx512) isas.push_back(Isa::avx512);
    if (features.avx2) isas.push_back(Isa::avx2);
#endif
    isas.push_back(Isa::portable);
    return isas;
}

}  // namespace

const char* name(Isa isa) {
    switch (isa) {
        case Isa::avx512_bf16:
            return "avx512_bf16";
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        case Isa::portable:
            break;
    }
    return "portable";
}

const std::vector<Isa>& available_isas() {
    static const std::vector<Isa> isas = find_isas();
    return isas;
}

Isa active_isa() {
    const char* wanted = std::getenv(kVariable);
    if (wanted == nullptr || *wanted == '\0') return available_isas().front();
    std::string here;
    for (Isa isa : available_isas()) {
        if (std::string(name(isa)) == wanted) return isa;
        here += (here.empty() ? "" : ", ") + std::string(name(isa));
    }
    const std::string got = std::string(kVariable) + "='" + wanted + "'";
    for (Isa isa : {Isa::avx512_bf16, Isa::avx512, Isa::avx2}) {
        if (std::string(name(isa)) == wanted) {
            throw std::invalid_argument(got + " is not available on this machine, expected one of: " + here);
        }
    }
    throw std::invalid_argument(got + " is no instruction set, expected avx512_bf16, avx512, avx2 or portable");
}

}  // namespace lordfast
