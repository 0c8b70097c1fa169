// Where kernels run: a device and one of its streams.
#pragma once

#include <cstdint>

namespace lordfast::cuda {

struct Queue {
    int device;
    std::uintptr_t stream;  // a cudaStream_t; 0 is the device's default stream
};

}  // namespace lordfast::cuda
