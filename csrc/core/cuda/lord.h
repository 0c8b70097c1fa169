// LoRD's forward and backward around a linear layer's own products, on CUDA arrays. Framework-free: raw pointers, sizes
// and a stream. Everything is contiguous and row-major; parameters, u and the gate are float.
//
//   u          = x A^T
//   gate_logit = w2 . act(P u + b1) + b2,  P = s W1 B                   (Eq. 4, its first layer folded onto u)
//   lambda     = sigmoid(gate_logit)
//   y         += s u B^T + lambda * (s u B'^T)                          (Eq. 5; x W^T + bias is in y already)
//
// Same inputs, same bits, on every device: no atomics, and no order of addition that depends on the device. Nothing
// waits for the device or allocates, so that a CUDA graph can capture it. Throws std::runtime_error where CUDA refuses
// a launch.
#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/cuda/queue.h"
#include "core/dtype.h"

namespace lordfast::cuda {

constexpr int kMaxRank = 64;

struct LordShape {
    int64_t m, k, n;  // rows (tokens), the layer's input and output features
    int rank;         // 1 .. kMaxRank
    int hidden;       // of the gate, 1 or more
    int64_t batch;    // 0: a lambda for each row; else one for each of `batch` samples of m / batch rows
    DType dtype;      // of x, y and their gradients
    Activation activation;
    float scaling;

    bool per_sample() const { return batch > 0; }
    int64_t tokens() const { return per_sample() ? m / batch : 1; }  // the rows that share a lambda
    int64_t lambdas() const { return per_sample() ? batch : m; }
};

struct LordParameters {
    const float* a;      // (rank, k)
    const float* b;      // (n, rank)
    const float* b_adv;  // (n, rank)
    const float* w1;     // (hidden, n)
    const float* b1;     // (hidden,)
    const float* w2;     // (hidden,)
    const float* b2;     // (1,)
};

struct LordForward {
    const void* x;      // (m, k)
    void* y;            // (m, n)
    bool accumulate;    // false: y's old values are not read, the branches alone are written
    float* u;           // (m, rank)
    float* gate_logit;  // (lambdas,)
    void* workspace;    // lord_forward_workspace bytes on a 16-byte boundary
};

// Each of the gradients is skipped where its pointer is null.
struct LordBackward {
    const void* grad_y;       // (m, n), or null: y reached no loss
    const float* grad_logit;  // (lambdas,), or null: the logit reached none
    const void* x;            // (m, k); read for lord_A's gradient only
    const float* gate_logit;  // (lambdas,)
    const float* u;           // (m, rank)
    void* x_grad;             // (m, k)
    bool accumulate;          // x_grad holds grad_y W already; false: its old values are not read
    float *a, *b, *b_adv;     // the parameters' gradients, of their shapes
    float *w1, *b1, *w2, *b2;
    void* workspace;  // lord_backward_workspace bytes on a 16-byte boundary

    bool wants_thin() const { return x_grad != nullptr || a != nullptr; }    // du
    bool wants_columns() const { return b != nullptr || b_adv != nullptr; }  // dY^T E
    bool wants_fold() const { return b != nullptr || w1 != nullptr; }        // dP
    bool wants_gate() const { return wants_fold() || b1 != nullptr || w2 != nullptr || b2 != nullptr; }
};

int64_t lord_forward_workspace(const LordShape& shape);
// Depends on which pointers are null, not on where they point; its own workspace may be null.
int64_t lord_backward_workspace(const LordShape& shape, const LordBackward& call);

// Three launches; four per sample.
void lord_forward(const LordShape& shape, const LordParameters& parameters, const LordForward& call,
                  const Queue& queue);

// Three launches for x_grad alone, five for everything; one more per sample.
void lord_backward(const LordShape& shape, const LordParameters& parameters, const LordBackward& call,
                   const Queue& queue);

}  // namespace lordfast::cuda
