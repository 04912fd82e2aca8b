// Convolutions of maps (N, H, W, C). Weights and bias come, and their gradients go, as float32 (K, C, h, w) and (K).
//
// Those of 1x1, stride 1 and no padding are matrix products; cuDNN runs the others. Weights are packed as (K', h, w, C) in
// the maps' type. K' is K, or more where the result is float32 of maps of 16 bits: rows of zeros make it a multiple of 8,
// since tensor cores serve few classes badly.
#include "libraries.h"
#include "sums.h"

namespace pfseg {
namespace {

constexpr int VALUES = 8192;  // most weights that a block turns around

// Weights (K, C, taps) float32, packed as (K', taps, C). A block turns around `each` channels of one k; 1x1 ones, which
// stay as they are, count as one k with K' * C channels.
template <class T>
struct Weights {
    float* plain;
    T* packed;
    int64_t size;  // of the plain ones
    int channels, taps, each;
    int first;  // block
};

template <class T>
struct Table {
    static constexpr int CAPACITY = 3800 / sizeof(Weights<T>);  // arguments of a kernel have 4 KiB
    Weights<T> weights[CAPACITY];
    int count, blocks;
};

// Pack all weights of a table, with zeros behind those of the last k, or take them back.
template <class T, bool PACK>
__global__ void exchange_weights(Table<T> table) {
    __shared__ float memory[VALUES];
    int low = 0, high = table.count - 1;  // the last weights that start at or before the block
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (table.weights[middle].first <= blockIdx.x) low = middle;
        else high = middle - 1;
    }
    const Weights<T> w = table.weights[low];
    const int parts = (w.channels + w.each - 1) / w.each, block = blockIdx.x - w.first;
    const int k = block / parts, begin = block % parts * w.each, width = min(w.each, w.channels - begin);
    const int64_t start = int64_t(k) * w.channels * w.taps;
    float* plain = w.plain + start + int64_t(begin) * w.taps;
    T* packed = w.packed + start + begin;
    const int count = static_cast<int>(max(int64_t(0), min(int64_t(width) * w.taps, w.size - (plain - w.plain))));
    if (PACK) {
        for (int i = threadIdx.x; i < width * w.taps; i += blockDim.x) memory[i] = i < count ? plain[i] : 0.0f;
        __syncthreads();
    }
    for (int i = threadIdx.x; i < width * w.taps; i += blockDim.x) {
        const int tap = i / width, c = i - tap * width, from = c * w.taps + tap;
        T* const to = packed + int64_t(tap) * w.channels + c;
        if (PACK) *to = from_float<T>(memory[from]);
        else if (from < count) memory[from] = to_float(*to);
    }
    if (!PACK) {
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += blockDim.x) plain[i] = memory[i];
    }
}

template <bool PACK>
void exchange_all(const Array* plain, const Array* packed, int count) {
    with_type(packed[0].type, [&](auto zero) {
        using T = decltype(zero);
        for (int start = 0; start < count; start += Table<T>::CAPACITY) {
            Table<T> table{};
            table.count = std::min(Table<T>::CAPACITY, count - start);
            for (int i = 0; i < table.count; i++) {
                const Array &from = plain[start + i], &to = packed[start + i];
                Weights<T>& w = table.weights[i];
                w.plain = as<float>(from), w.packed = as<T>(to), w.size = from.size(), w.first = table.blocks;
                w.taps = int(from.shape[2] * from.shape[3]);
                w.channels = int(w.taps == 1 ? to.size() : to.shape[3]);
                if (w.taps > VALUES) throw std::runtime_error("too large a kernel of a convolution");
                w.each = std::min(w.channels, VALUES / w.taps);
                table.blocks += blocks(w.channels, w.each) * unsigned(to.size() / w.channels / w.taps);
            }
            launch(exchange_weights<T, PACK>, table.blocks, 256, 0, table);
        }
    });
}

// y = x + bias, then ReLU, for the first channels of x, whose positions are `stride` values apart.
template <class From, class To, int N>
__global__ void finish(int64_t positions, int channels, int stride, const From* x, const float* bias, bool relu, To* y) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first >= channels) return;
    float b[N];
    for (int i = 0; i < N; i++) b[i] = bias ? bias[first + i] : 0.0f;
    const int64_t step = int64_t(gridDim.y) * blockDim.y;
    for (int64_t p = blockIdx.y * int64_t(blockDim.y) + threadIdx.y; p < positions; p += step) {
        const auto px = *reinterpret_cast<const Pack<From, N>*>(x + p * stride + first);
        Pack<To, N> py;
        for (int i = 0; i < N; i++) {
            const float value = to_float(px.values[i]) + b[i];
            py.values[i] = from_float<To>(relu ? max(value, 0.0f) : value);
        }
        *reinterpret_cast<Pack<To, N>*>(y + p * channels + first) = py;
    }
}

// float32 to another type, with channels of zeros behind each position's.
template <class T>
__global__ void widen(int64_t count, int channels, int stride, const float* x, T* y) {
    for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
        const int c = static_cast<int>(i % stride);
        y[i] = from_float<T>(c < channels ? x[i / stride * channels + c] : 0.0f);
    }
}

// Sum of x; the second sum stays 0.
template <class T, int N>
struct Sum {
    const T* x;
    int channels;
    __device__ void prepare(int) {}
    __device__ void add(int64_t position, int first, float (*sums)[N]) const {
        const auto pack = *reinterpret_cast<const Pack<T, N>*>(x + position * channels + first);
        for (int i = 0; i < N; i++) sums[0][i] += to_float(pack.values[i]);
    }
};

struct FinishSum {
    float* total;
    __device__ void operator()(int c, float sum, float) const { total[c] = sum; }
};

int64_t positions(const Array& maps) { return maps.shape[0] * maps.shape[1] * maps.shape[2]; }

Convolution convolution(const Array& x, const Array& w, const Array& y, const Options& options) {
    Convolution c{x, w, y, {}, {}, {}, bool(options.at("tf32")), bool(options.at("deterministic"))};
    for (int i = 0; i < 2; i++) {
        const std::string axis = std::to_string(i);
        c.stride[i] = int64_t(options.at("stride" + axis));
        c.padding[i] = int64_t(options.at("padding" + axis));
        c.dilation[i] = int64_t(options.at("dilation" + axis));
    }
    return c;
}

}  // namespace

// `count` weights (K, C, h, w) float32 -> each packed
void convolution_pack(const Array* in, const Array* out, const Options& options) {
    exchange_all<true>(in, out, static_cast<int>(options.at("count")));
}

// `count` packed weights -> each as (K, C, h, w) float32
void convolution_unpack(const Array* in, const Array* out, const Options& options) {
    exchange_all<false>(out, in, static_cast<int>(options.at("count")));
}

// x, weights (packed, or float32 (K, C, 1, 1) for 1x1 of float32), [bias] -> y, [y with K' channels]; options: the
// geometry's (`stride0`, ...), `pointwise`, `tf32`, `deterministic`, `relu`, and which optional arrays there are: `bias`,
// `wide`
void convolution_forward(const Array* in, const Array* out, const Options& options) {
    const bool wide = options.at("wide"), relu = options.at("relu");
    const float* bias = options.at("bias") ? as<float>(in[2]) : nullptr;
    const Array &w = in[1], &y = wide ? out[1] : out[0];
    const Array& x = in[0];
    if (options.at("pointwise")) {
        const int64_t channels = x.shape[3], k = y.shape[3];
        multiply(positions(x), k, channels, {x.data, x.type, channels}, {w.data, w.type, channels, true}, {y.data, y.type, k},
                 options.at("tf32"));
    } else {
        convolve(Pass::forward, convolution(x, w, y, options));
    }
    const int channels = int(out[0].shape[3]), stride = int(y.shape[3]);
    if (wide) {
        with_type(y.type, [&](auto zero) {
            using T = decltype(zero);
            launch(finish<T, float, 1>, grid_over(channels, positions(y)), block_over(channels), 0, positions(y), channels,
                   stride, as<T>(y), bias, relu, as<float>(out[0]));
        });
    } else if (bias || relu) {
        with_packs(y.type, channels, [&](auto zero, auto pack) {
            using T = decltype(zero);
            const int64_t packs = channels / pack;
            launch(finish<T, T, pack>, grid_over(packs, positions(y)), block_over(packs), 0, positions(y), channels, stride,
                   as<T>(y), bias, relu, as<T>(y));
        });
    }
}

// upstream (N, H', W', K'), weights (packed, or float32 for 1x1 of float32) -> gradient of x
void convolution_gradient_x(const Array* in, const Array* out, const Options& options) {
    const Array& upstream = in[0];
    if (options.at("pointwise")) {
        const int64_t channels = out[0].shape[3], k = upstream.shape[3];
        multiply(positions(upstream), channels, k, {upstream.data, upstream.type, k}, {in[1].data, in[1].type, channels},
                 {out[0].data, out[0].type, channels}, options.at("tf32"));
    } else {
        convolve(Pass::gradient_x, convolution(out[0], in[1], upstream, options));
    }
}

// upstream (N, H', W', K'), x -> gradient of the weights: packed, or float32 (K, C, 1, 1) for `pointwise`
void convolution_gradient_w(const Array* in, const Array* out, const Options& options) {
    const Array &upstream = in[0], &x = in[1], &gradient = out[0];
    if (options.at("pointwise")) {
        const int64_t channels = x.shape[3];
        multiply(gradient.shape[0], channels, positions(x), {upstream.data, upstream.type, upstream.shape[3], true},
                 {x.data, x.type, channels}, {gradient.data, gradient.type, channels}, options.at("tf32"));
    } else {
        convolve(Pass::gradient_w, convolution(x, gradient, upstream, options));
    }
}

// upstream (N, H', W', K) -> sums (K), scratch
void convolution_gradient_bias(const Array* in, const Array* out, const Options&) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        constexpr int N = pack;
        const Geometry g = geometry<N>(in[0]);
        sum_channels<N>(g, Sum<T, N>{as<T>(in[0]), g.channels}, FinishSum{as<float>(out[0])}, out[1]);
    });
}

// upstream (N, H', W', K) float32 -> (N, H', W', K') of the maps' type
void convolution_widen(const Array* in, const Array* out, const Options&) {
    with_type(out[0].type, [&](auto zero) {
        using T = decltype(zero);
        launch(widen<T>, grid_of(out[0].size()), 256, 0, out[0].size(), int(in[0].shape[3]), int(out[0].shape[3]),
               as<float>(in[0]), as<T>(out[0]));
    });
}

}  // namespace pfseg
