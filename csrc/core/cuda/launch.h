// Starting kernels, and what is checked around it. Host code; the tests of the kernels on a CPU replace this header.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "core/cuda/queue.h"

namespace lordfast::cuda {

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // the error is reported here; it must not surface in a later, unrelated call
    throw std::runtime_error(std::string(what) + " failed: CUDA error " + std::to_string(error) + ": " +
                             cudaGetErrorString(error));
}

// Makes a device the current one for as long as this lives.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        changed_ = before_ != device;
        if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// Not <<<>>>: this returns the launch's own error, where cudaGetLastError() could be somebody else's. No blocks, no
// launch (CUDA calls that an error).
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), long long blocks, int threads, const Queue& queue,
            const Arguments&... arguments) {
    if (blocks == 0) return;
    if (blocks > 0x7fffffffLL) {
        throw std::runtime_error(std::string("kernel ") + name + " would need " + std::to_string(blocks) +
                                 " blocks, expected fewer than 2^31");
    }
    std::tuple<Parameters...> values(arguments...);
    const cudaError_t error = std::apply(
        [&](auto&... value) {
            void* pointers[] = {&value...};
            return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                                    dim3(static_cast<unsigned>(threads)), pointers, 0,
                                    reinterpret_cast<cudaStream_t>(queue.stream));
        },
        values);
    check(error, (std::string("kernel ") + name).c_str());
}

}  // namespace lordfast::cuda
