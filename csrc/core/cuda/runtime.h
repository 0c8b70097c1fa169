// What the CUDA runtime compiled into this build finds on this machine. Never throws: no driver is an answer.
#pragma once

#include <string>
#include <vector>

namespace lordfast::cuda {

struct Device {
    std::string name;
    int major;
    int minor;
};

struct Status {
    std::string runtime_version;  // of the statically linked cudart, "13.0"
    std::string driver_version;   // the newest CUDA that the driver supports; empty without a driver
    std::vector<Device> devices;
    std::string reason;  // why there are no devices; empty if there are
};

Status status();

// The version and the architectures that the kernels were compiled for, in CMake's notation ("80-real").
std::string compiled_version();
std::vector<std::string> compiled_architectures();

}  // namespace lordfast::cuda
