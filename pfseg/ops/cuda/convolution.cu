// Convolutions of maps (N, H, W, C). Weights and bias come, and their gradients go, as float32 (K, C, h, w) and (K).
//
// Those of 1x1, stride 1 and no padding are matrix products; cuDNN runs the others, on weights packed as (K', h, w, C) in
// the maps' type. K' is K, or more where the result is float32 of maps of 16 bits: rows of zeros make it a multiple of 8,
// since tensor cores serve few classes badly.
#include "libraries.h"
#include "sums.h"

namespace pfseg {
namespace {

// Channels whose weights a block turns around at a time.
int channels_each(int taps) { return std::max(1, std::min(1024, 8192 / taps)); }

// (K, C, taps) float32 to (K', taps, C); one block for some channels of one k.
template <class T>
__global__ void pack_weights(int count, int channels, int taps, int each, const float* weight, T* packed) {
    PFSEG_SHARED(float, memory);
    const int k = blockIdx.y, first = blockIdx.x * each, width = min(each, channels - first);
    if (k < count)
        for (int i = threadIdx.x; i < width * taps; i += blockDim.x)
            memory[i] = weight[(int64_t(k) * channels + first) * taps + i];
    __syncthreads();
    for (int i = threadIdx.x; i < width * taps; i += blockDim.x) {
        const int tap = i / width, c = i - tap * width;
        packed[(int64_t(k) * taps + tap) * channels + first + c] = from_float<T>(k < count ? memory[c * taps + tap] : 0.0f);
    }
}

// Back, without the rows of zeros.
template <class T>
__global__ void unpack_weights(int channels, int taps, int each, const T* packed, float* weight) {
    PFSEG_SHARED(float, memory);
    const int k = blockIdx.y, first = blockIdx.x * each, width = min(each, channels - first);
    for (int i = threadIdx.x; i < width * taps; i += blockDim.x) {
        const int tap = i / width, c = i - tap * width;
        memory[c * taps + tap] = to_float(packed[(int64_t(k) * taps + tap) * channels + first + c]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width * taps; i += blockDim.x)
        weight[(int64_t(k) * channels + first) * taps + i] = memory[i];
}

// y = x + bias, then ReLU, for the first channels of x, whose positions are `stride` values apart.
template <class From, class To, int N>
__global__ void finish(int64_t packs, int channels, int stride, const From* x, const float* bias, bool relu, To* y) {
    for (int64_t p = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; p < packs; p += int64_t(gridDim.x) * blockDim.x) {
        const int64_t position = p * N / channels;
        const int c = static_cast<int>(p * N - position * channels);
        const auto px = *reinterpret_cast<const Pack<From, N>*>(x + position * stride + c);
        Pack<To, N> py;
        for (int i = 0; i < N; i++) {
            const float value = to_float(px.values[i]) + (bias ? bias[c + i] : 0.0f);
            py.values[i] = from_float<To>(relu ? max(value, 0.0f) : value);
        }
        reinterpret_cast<Pack<To, N>*>(y)[p] = py;
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

void pack(const Array& weight, const Array& packed) {
    const int channels = int(weight.shape[1]), taps = int(weight.shape[2] * weight.shape[3]), each = channels_each(taps);
    with_type(packed.type, [&](auto zero) {
        using T = decltype(zero);
        launch(pack_weights<T>, dim3(blocks(channels, each), unsigned(packed.shape[0])), 256, sizeof(float) * each * taps,
               int(weight.shape[0]), channels, taps, each, as<float>(weight), as<T>(packed));
    });
}

void unpack(const Array& packed, const Array& weight) {
    const int channels = int(weight.shape[1]), taps = int(weight.shape[2] * weight.shape[3]), each = channels_each(taps);
    with_type(packed.type, [&](auto zero) {
        using T = decltype(zero);
        launch(unpack_weights<T>, dim3(blocks(channels, each), unsigned(weight.shape[0])), 256,
               sizeof(float) * each * taps, channels, taps, each, as<T>(packed), as<float>(weight));
    });
}

// Weights (K, C, 1, 1) are (K, 1, 1, C) as they are.
Array last(Array weight) {
    std::swap(weight.shape[1], weight.shape[3]);
    return weight;
}

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

// x, weight, [bias] -> y, [packed weights], [y with K' channels]; options: the geometry's (`stride0`, ...), `pointwise`,
// `tf32`, `deterministic`, `relu`, and which optional arrays there are: `bias`, `packed`, `wide`
void convolution_forward(const Array* in, const Array* out, const Options& options) {
    const bool packed = options.at("packed"), wide = options.at("wide"), relu = options.at("relu");
    const float* bias = options.at("bias") ? as<float>(in[2]) : nullptr;
    if (packed) pack(in[1], out[1]);
    const Array w = packed ? out[1] : last(in[1]), y = wide ? out[2] : out[0];
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
            launch(finish<T, float, 1>, grid_of(out[0].size()), 256, 0, out[0].size(), channels, stride, as<T>(y), bias, relu,
                   as<float>(out[0]));
        });
    } else if (bias || relu) {
        with_packs(y.type, channels, [&](auto zero, auto pack) {
            using T = decltype(zero);
            const int64_t packs = y.size() / pack;
            launch(finish<T, T, pack>, grid_of(packs), 256, 0, packs, channels, stride, as<T>(y), bias, relu, as<T>(y));
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

// upstream (N, H', W', K'), x -> gradient of the weights (K, C, h, w), [packed as (K', h, w, C)]
void convolution_gradient_w(const Array* in, const Array* out, const Options& options) {
    const Array &upstream = in[0], &x = in[1], &gradient = out[0];
    if (options.at("pointwise")) {
        const int64_t channels = x.shape[3];
        multiply(gradient.shape[0], channels, positions(x), {upstream.data, upstream.type, upstream.shape[3], true},
                 {x.data, x.type, channels}, {gradient.data, gradient.type, channels}, options.at("tf32"));
    } else {
        convolve(Pass::gradient_w, convolution(x, out[1], upstream, options));
        unpack(out[1], gradient);
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
