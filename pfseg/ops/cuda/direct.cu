// Convolutions by plain loops: one thread for each value of the result.
#include "libraries.h"

namespace pfseg {
namespace {

struct Sizes {
    int n, h, w, c, k, rows, columns, out_h, out_w;
    int stride[2], padding[2], dilation[2];
};

template <class T>
__global__ void forward(int64_t count, Sizes s, const T* x, const T* weight, T* y) {
    for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
        const int k = i % s.k, column = i / s.k % s.out_w, row = i / s.k / s.out_w % s.out_h;
        const int64_t image = i / s.k / s.out_w / s.out_h;
        float sum = 0;
        for (int r = 0; r < s.rows; r++) {
            const int h = row * s.stride[0] - s.padding[0] + r * s.dilation[0];
            if (h < 0 || h >= s.h) continue;
            for (int q = 0; q < s.columns; q++) {
                const int w = column * s.stride[1] - s.padding[1] + q * s.dilation[1];
                if (w < 0 || w >= s.w) continue;
                const T* px = x + ((image * s.h + h) * s.w + w) * s.c;
                const T* pw = weight + ((int64_t(k) * s.rows + r) * s.columns + q) * s.c;
                for (int c = 0; c < s.c; c++) sum += to_float(px[c]) * to_float(pw[c]);
            }
        }
        y[i] = from_float<T>(sum);
    }
}

template <class T>
__global__ void gradient_x(int64_t count, Sizes s, const T* upstream, const T* weight, T* x_gradient) {
    for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
        const int c = i % s.c, w = i / s.c % s.w, h = i / s.c / s.w % s.h;
        const int64_t image = i / s.c / s.w / s.h;
        float sum = 0;
        for (int r = 0; r < s.rows; r++) {
            const int top = h + s.padding[0] - r * s.dilation[0], row = top / s.stride[0];
            if (top < 0 || top % s.stride[0] || row >= s.out_h) continue;
            for (int q = 0; q < s.columns; q++) {
                const int left = w + s.padding[1] - q * s.dilation[1], column = left / s.stride[1];
                if (left < 0 || left % s.stride[1] || column >= s.out_w) continue;
                const T* pg = upstream + ((image * s.out_h + row) * s.out_w + column) * s.k;
                const T* pw = weight + (r * s.columns + q) * int64_t(s.c) + c;
                for (int k = 0; k < s.k; k++) sum += to_float(pg[k]) * to_float(pw[int64_t(k) * s.rows * s.columns * s.c]);
            }
        }
        x_gradient[i] = from_float<T>(sum);
    }
}

template <class T>
__global__ void gradient_w(int64_t count, Sizes s, const T* upstream, const T* x, T* w_gradient) {
    for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
        const int c = i % s.c, q = i / s.c % s.columns, r = i / s.c / s.columns % s.rows;
        const int k = i / s.c / s.columns / s.rows;
        float total = 0;
        for (int64_t line = 0; line < int64_t(s.n) * s.out_h; line++) {
            const int row = line % s.out_h, h = row * s.stride[0] - s.padding[0] + r * s.dilation[0];
            if (h < 0 || h >= s.h) continue;
            float sum = 0;  // of a line: keeps the error of long sums low
            for (int column = 0; column < s.out_w; column++) {
                const int w = column * s.stride[1] - s.padding[1] + q * s.dilation[1];
                if (w < 0 || w >= s.w) continue;
                sum += to_float(upstream[(line * s.out_w + column) * s.k + k]) *
                       to_float(x[((line / s.out_h * s.h + h) * s.w + w) * s.c + c]);
            }
            total += sum;
        }
        w_gradient[i] = from_float<T>(total);
    }
}

}  // namespace

void convolve_directly(Pass pass, const Convolution& convolution) {
    const Array &x = convolution.x, &w = convolution.w, &y = convolution.y;
    Sizes s{int(x.shape[0]), int(x.shape[1]), int(x.shape[2]), int(x.shape[3]), int(w.shape[0]),
            int(w.shape[1]), int(w.shape[2]), int(y.shape[1]), int(y.shape[2]), {}, {}, {}};
    for (int i = 0; i < 2; i++) {
        s.stride[i] = int(convolution.stride[i]);
        s.padding[i] = int(convolution.padding[i]);
        s.dilation[i] = int(convolution.dilation[i]);
    }
    with_type(x.type, [&](auto zero) {
        using T = decltype(zero);
        const int64_t count = (pass == Pass::forward ? y : pass == Pass::gradient_x ? x : w).size();
        if (pass == Pass::forward)
            launch(forward<T>, grid_of(count), 256, 0, count, s, as<T>(x), as<T>(w), as<T>(y));
        else if (pass == Pass::gradient_x)
            launch(gradient_x<T>, grid_of(count), 256, 0, count, s, as<T>(y), as<T>(w), as<T>(x));
        else
            launch(gradient_w<T>, grid_of(count), 256, 0, count, s, as<T>(y), as<T>(x), as<T>(w));
    });
}

}  // namespace pfseg
