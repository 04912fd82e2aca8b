// Depthwise convolution of maps (N, H, W, C) with stride 1, padded such that they keep their size.
#include "sums.h"

namespace pfseg {
namespace {

struct Taps {
    int height, width, channels;    // of the maps
    int h, w, dilation0, dilation1;  // of the kernel

    Taps(const Array& x, const Array& w, const Options& options)
        : height(int(x.shape[1])), width(int(x.shape[2])), channels(int(x.shape[3])), h(int(w.shape[2])),
          w(int(w.shape[3])), dilation0(int(options.at("dilation0"))), dilation1(int(options.at("dilation1"))) {}

    // Row and column that tap i, j takes for an output.
    __device__ int row(int y, int i) const { return y + (i - h / 2) * dilation0; }
    __device__ int column(int x, int j) const { return x + (j - w / 2) * dilation1; }
    __device__ bool inside(int y, int x) const { return y >= 0 && y < height && x >= 0 && x < width; }
};

// One thread for each pack of channels of a position. `bias` may be null.
template <class T, int N>
__global__ void convolve(int64_t packs, Taps t, const T* __restrict__ x, const float* __restrict__ weights,
                         const float* __restrict__ bias, bool flipped, T* __restrict__ y) {
    const int count = t.h * t.w;
    for (int64_t p = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; p < packs; p += int64_t(gridDim.x) * blockDim.x) {
        const int64_t position = p * N / t.channels;
        const int first = static_cast<int>(p * N - position * t.channels);
        const int column = static_cast<int>(position % t.width), row = static_cast<int>(position / t.width % t.height);
        const T* map = x + (position - int64_t(row) * t.width - column) * t.channels + first;
        float sums[N];
        for (int k = 0; k < N; k++) sums[k] = bias ? bias[first + k] : 0.0f;
        for (int i = 0; i < t.h; i++)
            for (int j = 0; j < t.w; j++) {
                const int from_row = t.row(row, i), from_column = t.column(column, j);
                if (!t.inside(from_row, from_column)) continue;
                const int64_t at = (int64_t(from_row) * t.width + from_column) * t.channels;
                const auto pack = *reinterpret_cast<const Pack<T, N>*>(map + at);
                const float* tap = weights + int64_t(first) * count + (flipped ? count - 1 - i * t.w - j : i * t.w + j);
                for (int k = 0; k < N; k++) sums[k] += to_float(pack.values[k]) * tap[k * count];
            }
        Pack<T, N> result;
        for (int k = 0; k < N; k++) result.values[k] = from_float<T>(sums[k]);
        reinterpret_cast<Pack<T, N>*>(y)[p] = result;
    }
}

void convolve(const Array& x, const Array& w, const float* bias, bool flipped, const Array& y, const Options& options) {
    const Taps taps(x, w, options);
    with_packs(x.type, x.shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        const int64_t packs = x.size() / pack;
        launch(convolve<T, pack>, grid_of(packs), 256, 0, packs, taps, as<T>(x), as<float>(w), bias, flipped, as<T>(y));
    });
}

// Sums of upstream * x at a tap, and of the upstream.
template <class T, int N>
struct TapSums {
    const T *x, *upstream;
    Taps t;
    int i, j;
    __device__ void prepare(int) {}
    __device__ void add(int64_t position, int first, float (*sums)[N]) const {
        const int column = static_cast<int>(position % t.width), row = static_cast<int>(position / t.width % t.height);
        const int from_row = t.row(row, i), from_column = t.column(column, j);
        const auto pu = *reinterpret_cast<const Pack<T, N>*>(upstream + position * t.channels + first);
        for (int k = 0; k < N; k++) sums[1][k] += to_float(pu.values[k]);
        if (!t.inside(from_row, from_column)) return;
        const int64_t from = position + int64_t(from_row - row) * t.width + from_column - column;
        const auto px = *reinterpret_cast<const Pack<T, N>*>(x + from * t.channels + first);
        for (int k = 0; k < N; k++) sums[0][k] += to_float(pu.values[k]) * to_float(px.values[k]);
    }
};

struct FinishTap {
    int count, tap;
    float *weight, *bias;
    __device__ void operator()(int c, float product, float total) const {
        weight[int64_t(c) * count + tap] = product;
        bias[c] = total;
    }
};

}  // namespace

// x, w (C, 1, h, w) and, optionally, bias (C,) -> y. Options: dilation0, dilation1, bias.
void depthwise_forward(const Array* in, const Array* out, const Options& options) {
    convolve(in[0], in[1], options.at("bias") ? as<float>(in[2]) : nullptr, false, out[0], options);
}

// upstream, w -> gradient of x. Options: dilation0, dilation1.
void depthwise_gradient_x(const Array* in, const Array* out, const Options& options) {
    convolve(in[0], in[1], nullptr, true, out[0], options);
}

// upstream, x -> gradients of w and of a bias, scratch (1024 * C). Options: dilation0, dilation1.
void depthwise_gradient_w(const Array* in, const Array* out, const Options& options) {
    const Taps taps(in[0], out[0], options);
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        const auto g = geometry<pack>(in[0]);
        for (int i = 0; i < taps.h; i++)
            for (int j = 0; j < taps.w; j++) {
                const TapSums<T, pack> value{as<T>(in[1]), as<T>(in[0]), taps, i, j};
                const FinishTap finish{taps.h * taps.w, i * taps.w + j, as<float>(out[0]), as<float>(out[1])};
                sum_channels<pack>(g, value, finish, out[2]);
            }
    });
}

}  // namespace pfseg
