// Runs a kernel's blocks one after the other on one CPU thread, each of a block's threads as a fibre.
//
// A fibre runs until it reaches a barrier or a shuffle. What a GPU would leave undefined is an error here: threads of a
// block at different barriers, or some at one and some gone; lanes of a warp that do not shuffle together. Shared
// memory is filled with NaNs before each block, unless the address sanitizer guards it (it can't do so in thread-local
// memory). A barrier that is missing shows in results that depend on the order in which the fibres run, which can be
// chosen. It can't show what memory does on a GPU, or how fast anything is.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace shim {

enum class Order { forward, reverse, shuffled };

struct Settings {
    Order order = Order::forward;
    std::vector<std::string> launched;  // the names of the kernels run
};
Settings& settings();

// Throws std::runtime_error with the kernel's name for what is an error here.
void run(const char* name, long long blocks, int threads, const std::function<void()>& kernel);

// For the fibre that runs.
void block_barrier(const char* file, int line);
// Exchanges 8 bytes with all lanes of the warp; returns those of `from`.
const void* exchange(const void* value, size_t size, int from);
int lane();

}  // namespace shim
