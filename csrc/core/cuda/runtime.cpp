#include "core/cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <sstream>

namespace lordfast::cuda {
namespace {

std::string dotted(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

}  // namespace

std::string compiled_version() { return dotted(CUDART_VERSION); }

std::vector<std::string> compiled_architectures() {
    std::istringstream list(LORDFAST_CUDA_ARCHITECTURES);
    std::vector<std::string> architectures;
    for (std::string one; std::getline(list, one, ',');) architectures.push_back(one);
    return architectures;
}

Status status() {
    Status found;
    int version = 0;
    if (cudaRuntimeGetVersion(&version) == cudaSuccess) found.runtime_version = dotted(version);
    if (cudaDriverGetVersion(&version) == cudaSuccess && version > 0) found.driver_version = dotted(version);

    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        cudaGetLastError();  // the error is reported here; it must not surface in a later, unrelated call
        found.reason = "CUDA error " + std::to_string(error) + ": " + cudaGetErrorString(error);
        return found;
    }
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp properties;
        if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) {
            cudaGetLastError();
            continue;
        }
        found.devices.push_back({properties.name, properties.major, properties.minor});
    }
    if (found.devices.empty()) found.reason = "the driver reports no usable device";
    return found;
}

}  // namespace lordfast::cuda
