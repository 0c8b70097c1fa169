// Runs kernels on arrays that end where they must not be read or written further, for the address sanitizer to watch.
// Each line of the standard input is a case; "plant WHAT" runs a kernel with a mistake that must be found.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>

#include "core/cuda/element.cuh"
#include "core/cuda/launch.h"
#include "core/cuda/lord.h"
#include "core/cuda/pgd_step.h"

namespace {

using namespace lordfast;

// `count` elements, the first `offset` elements behind a 16-byte boundary, the last at the end of the allocation.
class Array {
  public:
    Array(int64_t count, int itemsize, int64_t offset = 0)
        : bytes_(count * itemsize),
          memory_(static_cast<char*>(std::malloc(bytes_ + offset * itemsize + 1))),
          start_(nullptr) {
        // The odd byte keeps malloc(0) from being null; the array ends right before it.
        memory_ = static_cast<char*>(std::realloc(memory_, bytes_ + offset * itemsize + (bytes_ == 0)));
        start_ = memory_ + offset * itemsize;
        std::memset(memory_, 0xff, bytes_ + offset * itemsize);
    }
    ~Array() { std::free(memory_); }
    Array(const Array&) = delete;

    Array& draw(DType dtype) {
        for (int64_t i = 0; i < bytes_ / itemsize(dtype); ++i) {
            const float v = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 0.5f;
            cuda::with_type(dtype,
                            [&](auto* type) { cuda::from_float(reinterpret_cast<decltype(type)>(start_)[i], v); });
        }
        return *this;
    }
    void expect_numbers(DType dtype, const char* name) const {
        for (int64_t i = 0; i < bytes_ / itemsize(dtype); ++i) {
            float v = 0;
            cuda::with_type(dtype,
                            [&](auto* type) { v = cuda::to_float(reinterpret_cast<decltype(type)>(start_)[i]); });
            if (v != v) throw std::runtime_error(std::string(name) + "[" + std::to_string(i) + "] was not written");
        }
    }
    template <class T = float>
    T* as() const {
        return reinterpret_cast<T*>(start_);
    }
    void* get() const { return start_; }

  private:
    int64_t bytes_;
    char *memory_, *start_;
};

DType dtype_of(int index) { return static_cast<DType>(index); }

void lord(std::istream& line) {
    int64_t m, k, n, batch, offset;
    int rank, hidden, dtype, activation;
    line >> m >> k >> n >> rank >> hidden >> batch >> dtype >> activation >> offset;
    const cuda::LordShape shape{m,   k, n, rank, hidden, batch, dtype_of(dtype), static_cast<Activation>(activation),
                                2.0f};
    constexpr DType f32 = DType::float32;
    const int size = itemsize(shape.dtype);
    Array x(m * k, size, offset), y(m * n, size, offset), u(m * rank, 4), logit(shape.lambdas(), 4);
    Array a(rank * k, 4), b(n * rank, 4), b_adv(n * rank, 4), w1(hidden * n, 4), b1(hidden, 4), w2(hidden, 4), b2(1, 4);
    x.draw(shape.dtype), y.draw(shape.dtype);
    for (Array* p : {&a, &b, &b_adv, &w1, &b1, &w2, &b2}) p->draw(f32);
    const cuda::LordParameters p{a.as(), b.as(), b_adv.as(), w1.as(), b1.as(), w2.as(), b2.as()};
    {
        Array workspace(cuda::lord_forward_workspace(shape), 1);
        cuda::lord_forward(shape, p, {x.get(), y.get(), true, u.as(), logit.as(), workspace.get()}, {0, 0});
        y.expect_numbers(shape.dtype, "y"), u.expect_numbers(f32, "u"), logit.expect_numbers(f32, "logit");
    }
    Array grad_y(m * n, size, offset), grad_logit(shape.lambdas(), 4), x_grad(m * k, size, offset);
    grad_y.draw(shape.dtype), grad_logit.draw(f32);
    Array da(rank * k, 4), db(n * rank, 4), db_adv(n * rank, 4), dw1(hidden * n, 4), db1(hidden, 4), dw2(hidden, 4),
        db2(1, 4);
    cuda::LordBackward call{grad_y.get(), grad_logit.as(), x.get(),  logit.as(), u.as(),
                            x_grad.get(), false,           da.as(),  db.as(),    db_adv.as(),
                            dw1.as(),     db1.as(),        dw2.as(), db2.as(),   nullptr};
    Array workspace(cuda::lord_backward_workspace(shape, call), 1);
    call.workspace = workspace.get();
    cuda::lord_backward(shape, p, call, {0, 0});
    x_grad.expect_numbers(shape.dtype, "x_grad");
    for (Array* g : {&da, &db, &db_adv, &dw1, &db1, &dw2, &db2}) g->expect_numbers(f32, "a parameter's gradient");
}

void pgd(std::istream& line) {
    int64_t batch, numel, offsets[4];
    int dtype, norm;
    line >> batch >> numel >> dtype >> norm >> offsets[0] >> offsets[1] >> offsets[2] >> offsets[3];
    const int size = itemsize(dtype_of(dtype));
    Array x(batch * numel, size, offsets[0]), x0(batch * numel, size, offsets[1]), g(batch * numel, size, offsets[2]);
    Array out(batch * numel, size, offsets[3]);
    for (Array* t : {&x, &x0, &g}) t->draw(dtype_of(dtype));
    const PgdStep step{x.get(), x0.get(), g.get(), out.get(), batch, numel, dtype_of(dtype), static_cast<Norm>(norm),
                       0.1f,    0.2f,     -1.0f,   1.0f,      1.0f};
    Array workspace(cuda::pgd_step_workspace(step.norm, batch, numel), 1);
    cuda::pgd_step(step, workspace.get(), {0, 0});
    out.expect_numbers(dtype_of(dtype), "out");
}

void write_one_further(float* to, int n) {
    for (int i = threadIdx.x; i <= n; i += 32) to[i] = 1.0f;
}
void read_one_further(float* to, int n) {
    __shared__ float staged[40];
    for (int i = threadIdx.x; i < 40; i += 32) staged[i] = 1.0f;
    __syncthreads();
    to[0] = staged[n + 37];
}
void wide_access_off_its_boundary(float* to, int) {
    const float4 four = *reinterpret_cast<const float4*>(to);
    to[0] = four.x;
}
void barrier_for_some(float* to, int n) {
    if (static_cast<int>(threadIdx.x) < n) __syncthreads();
    to[0] = 1.0f;
}
void barriers_apart(float* to, int n) {
    if (static_cast<int>(threadIdx.x) < n) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    to[0] = 1.0f;
}
void shuffle_for_some(float* to, int n) {
    if (static_cast<int>(threadIdx.x) < n) to[0] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

void plant(std::istream& line) {
    std::string what;
    line >> what;
    Array to(3, 4, what == "misaligned" ? 1 : 0);
    const auto run = [&](void (*kernel)(float*, int)) { cuda::launch("planted", kernel, 1, 32, {0, 0}, to.as(), 3); };
    if (what == "global") run(write_one_further);
    if (what == "shared") run(read_one_further);
    if (what == "misaligned") run(wide_access_off_its_boundary);
    if (what == "barrier") run(barrier_for_some);
    if (what == "barriers") run(barriers_apart);
    if (what == "shuffle") run(shuffle_for_some);
}

}  // namespace

int main() {
    for (std::string text; std::getline(std::cin, text);) {
        std::istringstream line(text);
        std::string what;
        line >> what;
        try {
            if (what == "lord") lord(line);
            if (what == "pgd") pgd(line);
            if (what == "plant") plant(line);
        } catch (const std::exception& error) {
            std::printf("FAILED %s: %s\n", text.c_str(), error.what());
            return 1;
        }
        std::printf("ok %s\n", text.c_str());
    }
    return 0;
}
