#include "fibres.h"

#include <cuda_runtime.h>
#include <link.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
#    include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {
namespace {

constexpr size_t kStack = 128 << 10;
constexpr int kWarp = 32;

enum class State { ready, at_block_barrier, at_exchange, done };

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    State state = State::ready;
    const char* file = nullptr;
    int line = 0;
    char slots[2][8] = {};  // of two exchanges in turn: a lane may reach the second before others have read the first
    int exchanges = 0;
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack = nullptr;
#else
    jmp_buf jump;
    bool started = false;
#endif
};

std::vector<Fibre> fibres;
#ifdef __SANITIZE_ADDRESS__
ucontext_t scheduler;
#endif
int current = -1;
std::string error;
const std::function<void()>* body = nullptr;

void enter();

#ifdef __SANITIZE_ADDRESS__
// swapcontext, which the sanitizer knows, and what it must be told besides.
const void* main_stack = nullptr;
size_t main_size = 0;
void* main_fake = nullptr;

void to_scheduler() {
    Fibre& self = fibres[current];
    __sanitizer_start_switch_fiber(&self.fake_stack, main_stack, main_size);
    swapcontext(&self.context, &scheduler);
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
}

void entry() {
    __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_size);
    enter();
}

void to_fibre(Fibre& fibre) {
    __sanitizer_start_switch_fiber(&main_fake, fibre.stack.get(), kStack);
    swapcontext(&scheduler, &fibre.context);
    __sanitizer_finish_switch_fiber(main_fake, nullptr, nullptr);
}
#else
// swapcontext saves the signal mask, two system calls; these jumps make everything twenty times as fast.
jmp_buf scheduler_jump;

void to_scheduler() {
    if (_setjmp(fibres[current].jump) == 0) _longjmp(scheduler_jump, 1);
}

void entry() { enter(); }

void to_fibre(Fibre& fibre) {
    if (_setjmp(scheduler_jump) != 0) return;
    if (fibre.started) _longjmp(fibre.jump, 1);
    fibre.started = true;
    setcontext(&fibre.context);
}
#endif

void enter() {
    (*body)();
    fibres[current].state = State::done;
    to_scheduler();
}

void resume(int thread) {
    current = thread;
    threadIdx.x = static_cast<unsigned>(thread);
    to_fibre(fibres[thread]);
}

#ifdef __SANITIZE_ADDRESS__
void poison_shared_memory() {}
#else
// Shared variables are thread_local here, and nothing else in the library of the kernels is: they are its thread-local
// segment.
thread_local char anchor;  // makes sure that the segment exists

int find_segment(dl_phdr_info* info, size_t, void* found) {
    char* segment = static_cast<char*>(info->dlpi_tls_data);
    for (int i = 0; segment != nullptr && i < info->dlpi_phnum; ++i) {
        const size_t size = info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type == PT_TLS && &anchor >= segment && &anchor < segment + size) {
            *static_cast<std::pair<char*, size_t>*>(found) = {segment, size};
            return 1;
        }
    }
    return 0;
}

void poison_shared_memory() {
    static const std::pair<char*, size_t> segment = [] {
        std::pair<char*, size_t> found{nullptr, 0};
        anchor = 1;
        dl_iterate_phdr(find_segment, &found);
        return found;
    }();
    std::memset(segment.first, 0xff, segment.second);
}
#endif

std::string where(const Fibre& fibre) { return std::string(fibre.file) + ":" + std::to_string(fibre.line); }

// Lets the warps go whose lanes are all at an exchange; whether there was one.
bool release_warps(int threads) {
    bool any = false;
    for (int first = 0; first < threads; first += kWarp) {
        const int last = std::min(threads, first + kWarp);
        const auto waits = [](const Fibre& f) { return f.state == State::at_exchange; };
        if (!std::all_of(fibres.begin() + first, fibres.begin() + last, waits)) continue;
        for (int t = first; t < last; ++t) fibres[t].state = State::ready;
        any = true;
    }
    return any;
}

// Called when nobody is ready: lets the block go if all its threads are at one barrier.
void release_block(int threads) {
    for (int t = 0; t < threads; ++t) {
        const Fibre &fibre = fibres[t], &first = fibres[0];
        const std::string thread = "thread " + std::to_string(t);
        if (fibre.state == State::at_exchange) error = thread + " waits alone in a shuffle";
        if (fibre.state == State::done) error = thread + " has left while others wait at a barrier";
        if (first.state == State::at_block_barrier && fibre.state == State::at_block_barrier &&
            (fibre.line != first.line || fibre.file != first.file)) {
            error = thread + " waits at " + where(fibre) + ", thread 0 at " + where(first);
        }
        if (!error.empty()) return;
    }
    for (int t = 0; t < threads; ++t) fibres[t].state = State::ready;
}

std::vector<int> order_of(int threads, std::mt19937& random) {
    std::vector<int> order(threads);
    for (int t = 0; t < threads; ++t) order[t] = t;
    if (settings().order == Order::reverse) std::reverse(order.begin(), order.end());
    if (settings().order == Order::shuffled) std::shuffle(order.begin(), order.end(), random);
    return order;
}

void run_block(int threads, std::mt19937& random) {
    poison_shared_memory();
    for (int t = 0; t < threads; ++t) {
        Fibre& fibre = fibres[t];
        fibre.state = State::ready;
        fibre.exchanges = 0;
#ifndef __SANITIZE_ADDRESS__
        fibre.started = false;
#endif
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = kStack;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, entry, 0);
    }
    const std::vector<int> order = order_of(threads, random);
    for (;;) {
        for (int t : order) {
            if (fibres[t].state == State::ready) resume(t);
            if (!error.empty()) return;
        }
        if (release_warps(threads)) continue;
        const auto done = [](const Fibre& f) { return f.state == State::done; };
        if (std::all_of(fibres.begin(), fibres.begin() + threads, done)) return;
        release_block(threads);
        if (!error.empty()) return;
    }
}

}  // namespace

Settings& settings() {
    static Settings one;
    return one;
}

void run(const char* name, long long blocks, int threads, const std::function<void()>& kernel) {
    settings().launched.push_back(name);
    if (fibres.size() < static_cast<size_t>(threads)) fibres.resize(threads);
    body = &kernel;
    error.clear();
    blockDim = dim3(static_cast<unsigned>(threads)), gridDim = dim3(static_cast<unsigned>(blocks));
    std::mt19937 random(1);
    for (long long i = 0; i < blocks && error.empty(); ++i) {
        const long long block = settings().order == Order::forward ? i : blocks - 1 - i;
        blockIdx = dim3(static_cast<unsigned>(block));
        run_block(threads, random);
    }
    if (!error.empty()) {
        throw std::runtime_error(std::string("kernel ") + name + ", block " + std::to_string(blockIdx.x) + ": " +
                                 error);
    }
}

void block_barrier(const char* file, int line) {
    Fibre& self = fibres[current];
    self.state = State::at_block_barrier, self.file = file, self.line = line;
    to_scheduler();
}

const void* exchange(const void* value, size_t size, int from) {
    Fibre& self = fibres[current];
    const int slot = self.exchanges++ % 2;
    std::memcpy(self.slots[slot], value, size);
    self.state = State::at_exchange;
    to_scheduler();
    return fibres[current / kWarp * kWarp + from].slots[slot];
}

int lane() { return current % kWarp; }

}  // namespace shim
