// Argument checks. Each failure is a std::invalid_argument, in Python a ValueError: argument, what came, what was
// expected.
#pragma once

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

inline std::string quoted(const std::string& text) { return "'" + text + "'"; }

}  // namespace lordfast
