// Convolutions by cuDNN and matrix products by cuBLAS (`libraries.cu`), and what runs where cuDNN has no kernel.
#pragma once
#include "device.h"

namespace pfseg {

enum class Pass { forward, gradient_x, gradient_w };

// x (N, H, W, C), w (K, h, w, C), y (N, H', W', K): two of them, or their gradients, are read, and one is written.
// All are of one type, sums are float32.
struct Convolution {
    Array x, w, y;
    int64_t stride[2], padding[2], dilation[2];
    bool tf32;           // whether products of float32 may round their factors to 10 bits of mantissa
    bool deterministic;  // whether two runs have to agree to the last bit
};

void convolve(Pass pass, const Convolution& convolution);

// The same by plain loops: slow, for any geometry.
void convolve_directly(Pass pass, const Convolution& convolution);

// A matrix by rows, `stride` values apart; with `transposed`, stored by columns.
struct Matrix {
    void* data;
    Type type;
    int64_t stride;
    bool transposed = false;
};

// c (rows, columns) = a (rows, inner) times b (inner, columns); a and b are of one type, c of it or float32.
void multiply(int64_t rows, int64_t columns, int64_t inner, const Matrix& a, const Matrix& b, const Matrix& c, bool tf32);

}  // namespace pfseg
