// A kernel with mistakes that the tests must see. Not in module.cpp: pybind11 has thread-local variables of its own.
#include <vector>

#include "cuda_runtime.h"

namespace {

// Thread 31 writes nothing, and nobody waits for the others.
void read_unwritten(float* to, bool waits) {
    __shared__ float staged[32];
    if (threadIdx.x < 31) staged[threadIdx.x] = static_cast<float>(threadIdx.x);
    if (waits) __syncthreads();
    to[threadIdx.x] = staged[31 - threadIdx.x];
}

}  // namespace

std::vector<float> planted(bool waits) {
    std::vector<float> to(32);
    shim::run("planted", 2, 32, [&] { read_unwritten(to.data(), waits); });
    return to;
}
