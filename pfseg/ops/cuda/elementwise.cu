// GELU, and sums of maps (N, H, W, C) of which one is scaled.
#include "device.h"

namespace pfseg {
namespace {

constexpr float DENSITY = 0.3989422804014327f;  // of the normal distribution at 0

__device__ inline float normal(float x) { return 0.5f * erff(x * 0.7071067811865476f) + 0.5f; }

// y = x * normal(x), or with GRADIENT the gradient of x for the upstream.
template <class T, bool GRADIENT>
__global__ void gelu(int64_t count, const T* __restrict__ x, const T* __restrict__ upstream, T* __restrict__ y) {
    for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
        const float v = to_float(x[i]);
        if (!GRADIENT) y[i] = from_float<T>(v * normal(v));
        else y[i] = from_float<T>(to_float(upstream[i]) * (normal(v) + v * DENSITY * __expf(-0.5f * v * v)));
    }
}

// Positions of a sample, channels, and the number of values.
struct Sizes {
    int64_t positions, channels, count;
    explicit Sizes(const Array& x) : positions(x.shape[1] * x.shape[2]), channels(x.shape[3]), count(x.size()) {}
};

template <class T>
__global__ void scaled_add(Sizes s, const T* __restrict__ x, const T* __restrict__ y, const float* __restrict__ scale,
                           T* __restrict__ sum) {
    for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < s.count; i += int64_t(gridDim.x) * blockDim.x) {
        const float factor = scale[i / (s.positions * s.channels) * s.channels + i % s.channels];
        sum[i] = from_float<T>(to_float(x[i]) + factor * to_float(y[i]));
    }
}

// Blocks (groups of 32 channels, samples) of 32 x 8 threads: each adds up every eighth position of a channel.
template <class T>
__global__ void scaled_add_gradient(Sizes s, const T* __restrict__ upstream, const T* __restrict__ y,
                                    const float* __restrict__ scale, T* __restrict__ y_gradient,
                                    float* __restrict__ scale_gradient) {
    __shared__ float memory[8][32];
    const int64_t c = blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    if (c < s.channels) {
        const int64_t start = blockIdx.y * s.positions * s.channels + c;
        const float factor = scale[blockIdx.y * s.channels + c];
        for (int64_t p = threadIdx.y; p < s.positions; p += 8) {
            const float u = to_float(upstream[start + p * s.channels]);
            y_gradient[start + p * s.channels] = from_float<T>(factor * u);
            sum += u * to_float(y[start + p * s.channels]);
        }
    }
    memory[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < s.channels) {
        float total = 0;
        for (int i = 0; i < 8; i++) total += memory[i][threadIdx.x];
        scale_gradient[blockIdx.y * s.channels + c] = total;
    }
}

}  // namespace

// x -> x times the normal distribution function of x
void elementwise_gelu(const Array* in, const Array* out, const Options&) {
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        const T* none = nullptr;
        launch(gelu<T, false>, grid_of(in[0].size()), 256, 0, in[0].size(), as<T>(in[0]), none, as<T>(out[0]));
    });
}

// x, upstream -> gradient of x
void elementwise_gelu_gradient(const Array* in, const Array* out, const Options&) {
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        launch(gelu<T, true>, grid_of(in[0].size()), 256, 0, in[0].size(), as<T>(in[0]), as<T>(in[1]), as<T>(out[0]));
    });
}

// x, y, scale (N, C) float32 -> x + scale * y
void elementwise_scaled_add(const Array* in, const Array* out, const Options&) {
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        launch(scaled_add<T>, grid_of(in[0].size()), 256, 0, Sizes(in[0]), as<T>(in[0]), as<T>(in[1]), as<float>(in[2]),
               as<T>(out[0]));
    });
}

// upstream, y, scale -> gradients of y and scale
void elementwise_scaled_add_gradient(const Array* in, const Array* out, const Options&) {
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        const dim3 grid(blocks(in[0].shape[3], 32), static_cast<unsigned>(in[0].shape[0]));
        launch(scaled_add_gradient<T>, grid, dim3(32, 8), 0, Sizes(in[0]), as<T>(in[0]), as<T>(in[1]), as<float>(in[2]),
               as<T>(out[0]), as<float>(out[1]));
    });
}

}  // namespace pfseg
