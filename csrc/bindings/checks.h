// Argument checks. Each failure is a std::invalid_argument, in Python a ValueError: argument, what came, what was
// expected.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace lordfast {

template <class Value>
void require(bool holds, const char* argument, const Value& got, const char* expected) {
    if (holds) return;
    std::ostringstream message;
    message << argument << " is " << got << ", expected " << expected;
    throw std::invalid_argument(message.str());
}

// Device memory to work in.
inline void require_workspace(std::uintptr_t address, std::int64_t bytes, std::int64_t wanted) {
    require(bytes >= wanted, "workspace_bytes", bytes, (std::to_string(wanted) + " or more").c_str());
    require(address != 0 || wanted == 0, "workspace", "a null pointer", "the address of device memory");
    require(address % 16 == 0, "workspace", address, "an address on a 16-byte boundary");
}

inline std::string quoted(const std::string& text) { return "'" + text + "'"; }

}  // namespace lordfast
