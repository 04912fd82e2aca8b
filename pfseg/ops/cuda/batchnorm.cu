// Batch normalisation of maps (N, H, W, C).
#include "sums.h"

namespace pfseg {
namespace {

// Sums of x - x0 and of its square, x0 being the channel's first value: stable also far from zero.
template <class T, int N>
struct Moments {
    const T* x;
    int channels;
    float first_value[N];
    __device__ void prepare(int first) {
        for (int i = 0; i < N; i++) first_value[i] = to_float(x[first + i]);
    }
    __device__ void add(int64_t position, int first, float (*sums)[N]) const {
        const auto pack = *reinterpret_cast<const Pack<T, N>*>(x + position * channels + first);
        for (int i = 0; i < N; i++) {
            const float d = to_float(pack.values[i]) - first_value[i];
            sums[0][i] += d;
            sums[1][i] += d * d;
        }
    }
};

// What follows from the moments of a channel: the factor of the normalisation, and the running statistics after the batch.
struct Settle {
    const float *weight, *running_mean, *running_variance;
    float eps, momentum, unbiased;  // factor that makes the variance unbiased
    float *scale, *inverse, *new_mean, *new_variance;
    __device__ void operator()(int c, float mean, float variance) const {
        inverse[c] = 1.0f / sqrtf(variance + eps);
        scale[c] = weight[c] * inverse[c];
        new_mean[c] = running_mean[c] + (mean - running_mean[c]) * momentum;
        new_variance[c] = running_variance[c] + (variance * unbiased - running_variance[c]) * momentum;
    }
};

// weight, running mean and variance -> scale, 1 / deviation, new running mean and variance (all C)
Settle settle(const Array* in, const Array* out, const Options& options, double count) {
    return {as<float>(in[0]), as<float>(in[1]), as<float>(in[2]), float(options.at("eps")), float(options.at("momentum")),
            float(count / std::max(count - 1, 1.0)), as<float>(out[0]), as<float>(out[1]), as<float>(out[2]), as<float>(out[3])};
}

__global__ void settle_all(int channels, Settle settle, const float* mean, const float* variance) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < channels) settle(c, mean[c], variance[c]);
}

template <class T, bool SETTLE>
struct FinishMoments {
    const T* x;
    float count;
    float *mean, *variance;  // the variance only without `settle`
    Settle settle;
    __device__ void operator()(int c, float sum, float squares) const {
        const float shifted = sum / count;
        const float average = to_float(x[c]) + shifted, spread = max(squares / count - shifted * shifted, 0.0f);
        mean[c] = average;
        if (SETTLE) settle(c, average, spread);
        else variance[c] = spread;
    }
};

// Sums of g and of g * (x - mean), g being the gradient of what ReLU took (0 where it gave 0).
template <class T, int N, bool RELU, bool RESIDUAL>
struct GradientSums {
    const T *x, *upstream, *y;  // y: the output, read only with a residual
    const float *mean, *scale, *shift;
    int channels;
    float m[N], s[N], b[N];
    __device__ void prepare(int first) {
        for (int i = 0; i < N; i++) m[i] = mean[first + i], s[i] = scale[first + i], b[i] = shift[first + i];
    }
    __device__ void add(int64_t position, int first, float (*sums)[N]) const {
        const int64_t at = position * channels + first;
        const auto px = *reinterpret_cast<const Pack<T, N>*>(x + at);
        const auto pg = *reinterpret_cast<const Pack<T, N>*>(upstream + at);
        Pack<T, N> py;
        if (RELU && RESIDUAL) py = *reinterpret_cast<const Pack<T, N>*>(y + at);
        for (int i = 0; i < N; i++) {
            const float d = to_float(px.values[i]) - m[i];
            const bool kept = !RELU || (RESIDUAL ? to_float(py.values[i]) > 0 : d * s[i] + b[i] > 0);
            const float g = kept ? to_float(pg.values[i]) : 0.0f;
            sums[0][i] += g;
            sums[1][i] += g * d;
        }
    }
};

// Gradients of weight and bias, and the means over the positions that the gradient of x takes.
struct FinishSums {
    int channels;
    float share;  // 1 / number of positions; 0 where the moments are constants
    const float* inverse;
    float *weight, *bias, *means;
    __device__ void operator()(int c, float total, float product) const {
        weight[c] = product * inverse[c];
        bias[c] = total;
        means[c] = total * share;
        means[channels + c] = product * inverse[c] * inverse[c] * share;
    }
};

template <class T, int N, bool RELU, bool RESIDUAL>
__global__ void normalise(int64_t positions, int channels, const T* x, const float* mean, const float* scale,
                          const float* shift, const float* variance, float eps, const T* residual, T* y) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first >= channels) return;
    float m[N], s[N], b[N];
    for (int i = 0; i < N; i++) {
        const int c = first + i;
        m[i] = mean[c], b[i] = shift[c];
        s[i] = variance ? scale[c] * rsqrtf(variance[c] + eps) : scale[c];
    }
    const int64_t step = int64_t(gridDim.y) * blockDim.y;
    for (int64_t p = blockIdx.y * int64_t(blockDim.y) + threadIdx.y; p < positions; p += step) {
        const int64_t at = p * channels + first;
        const auto px = *reinterpret_cast<const Pack<T, N>*>(x + at);
        Pack<T, N> pr, py;
        if (RESIDUAL) pr = *reinterpret_cast<const Pack<T, N>*>(residual + at);
        for (int i = 0; i < N; i++) {
            float value = (to_float(px.values[i]) - m[i]) * s[i] + b[i];
            if (RESIDUAL) value += to_float(pr.values[i]);
            py.values[i] = from_float<T>(RELU ? max(value, 0.0f) : value);
        }
        *reinterpret_cast<Pack<T, N>*>(y + at) = py;
    }
}

template <class T, int N, bool RELU, bool RESIDUAL>
__global__ void gradient(int64_t positions, int channels, const T* x, const T* upstream, const T* y, const float* mean,
                         const float* scale, const float* shift, const float* means, T* x_gradient, T* residual_gradient) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first >= channels) return;
    float m[N], s[N], b[N], total[N], product[N];
    for (int i = 0; i < N; i++) {
        const int c = first + i;
        m[i] = mean[c], s[i] = scale[c], b[i] = shift[c], total[i] = means[c], product[i] = means[channels + c];
    }
    const int64_t step = int64_t(gridDim.y) * blockDim.y;
    for (int64_t p = blockIdx.y * int64_t(blockDim.y) + threadIdx.y; p < positions; p += step) {
        const int64_t at = p * channels + first;
        const auto px = *reinterpret_cast<const Pack<T, N>*>(x + at);
        const auto pg = *reinterpret_cast<const Pack<T, N>*>(upstream + at);
        Pack<T, N> py, gx, gr;
        if (RELU && RESIDUAL) py = *reinterpret_cast<const Pack<T, N>*>(y + at);
        for (int i = 0; i < N; i++) {
            const float d = to_float(px.values[i]) - m[i];
            const bool kept = !RELU || (RESIDUAL ? to_float(py.values[i]) > 0 : d * s[i] + b[i] > 0);
            const float g = kept ? to_float(pg.values[i]) : 0.0f;
            gx.values[i] = from_float<T>(s[i] * (g - total[i] - d * product[i]));
            gr.values[i] = from_float<T>(g);
        }
        *reinterpret_cast<Pack<T, N>*>(x_gradient + at) = gx;
        if (RESIDUAL) *reinterpret_cast<Pack<T, N>*>(residual_gradient + at) = gr;
    }
}

// Call `work` with the two flags as constants.
template <class Work>
void with_flags(bool relu, bool residual, Work work) {
    if (relu) residual ? work(std::true_type{}, std::true_type{}) : work(std::true_type{}, std::false_type{});
    else residual ? work(std::false_type{}, std::true_type{}) : work(std::false_type{}, std::false_type{});
}

}  // namespace

// x -> mean (C), biased variance (C), scratch
void batchnorm_moments(const Array* in, const Array* out, const Options&) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        constexpr int N = pack;
        const Geometry g = geometry<N>(in[0]);
        const FinishMoments<T, false> finish{as<T>(in[0]), float(g.positions), as<float>(out[0]), as<float>(out[1]), {}};
        sum_channels<N>(g, Moments<T, N>{as<T>(in[0]), g.channels}, finish, out[2]);
    });
}

// x, and as `settle` -> mean (C), what `settle` gives, scratch
void batchnorm_statistics(const Array* in, const Array* out, const Options& options) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        constexpr int N = pack;
        const Geometry g = geometry<N>(in[0]);
        const FinishMoments<T, true> finish{as<T>(in[0]), float(g.positions), as<float>(out[0]), nullptr,
                                            settle(in + 1, out + 1, options, double(g.positions))};
        sum_channels<N>(g, Moments<T, N>{as<T>(in[0]), g.channels}, finish, out[5]);
    });
}

// mean, biased variance (C) of `count` positions, and as `settle` -> what `settle` gives
void batchnorm_settle(const Array* in, const Array* out, const Options& options) {
    const int channels = static_cast<int>(in[0].shape[0]);
    launch(settle_all, blocks(channels, 256), 256, 0, channels, settle(in + 2, out, options, options.at("count")),
           as<float>(in[0]), as<float>(in[1]));
}

// x, mean, scale, shift (C), [residual], with `constant` variance (C), whose root with `eps` divides the scale -> y
void batchnorm_normalise(const Array* in, const Array* out, const Options& options) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        constexpr int N = pack;
        const int64_t channels = in[0].shape[3], positions = in[0].size() / channels;
        const dim3 block = block_over(channels / N), grid = grid_over(channels / N, positions);
        with_flags(options.at("relu"), options.at("residual"), [&](auto relu, auto residual) {
            const float* variance = options.at("constant") ? as<float>(in[residual ? 5 : 4]) : nullptr;
            launch(normalise<T, N, relu, residual>, grid, block, 0, positions, int(channels), as<T>(in[0]),
                   as<float>(in[1]), as<float>(in[2]), as<float>(in[3]), variance, float(options.at("eps")),
                   residual ? as<T>(in[4]) : nullptr, as<T>(out[0]));
        });
    });
}

// x, upstream, mean, scale, shift, 1 / deviation (C), [y] -> gradients of weight and bias (C), means over the positions
// (2, C) of g and of g * (x - mean) / variance, which are 0 with `constant` moments, scratch
void batchnorm_gradient_sums(const Array* in, const Array* out, const Options& options) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        constexpr int N = pack;
        const Geometry g = geometry<N>(in[0]);
        const FinishSums finish{g.channels, options.at("constant") ? 0.0f : 1.0f / g.positions, as<float>(in[5]),
                                as<float>(out[0]), as<float>(out[1]), as<float>(out[2])};
        with_flags(options.at("relu"), options.at("residual"), [&](auto relu, auto residual) {
            const GradientSums<T, N, relu, residual> value{
                as<T>(in[0]), as<T>(in[1]), residual ? as<T>(in[6]) : nullptr,
                as<float>(in[2]), as<float>(in[3]), as<float>(in[4]), g.channels};
            sum_channels<N>(g, value, finish, out[3]);
        });
    });
}

// x, upstream, mean, scale, shift (C), means (2, C), [y] -> gradient of x, [of the residual]
void batchnorm_gradient(const Array* in, const Array* out, const Options& options) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        constexpr int N = pack;
        const int64_t channels = in[0].shape[3], positions = in[0].size() / channels;
        const dim3 block = block_over(channels / N), grid = grid_over(channels / N, positions);
        with_flags(options.at("relu"), options.at("residual"), [&](auto relu, auto residual) {
            launch(gradient<T, N, relu, residual>, grid, block, 0, positions, int(channels), as<T>(in[0]),
                   as<T>(in[1]), residual ? as<T>(in[6]) : nullptr, as<float>(in[2]), as<float>(in[3]), as<float>(in[4]),
                   as<float>(in[5]), as<T>(out[0]), residual ? as<T>(out[1]) : nullptr);
        });
    });
}

}  // namespace pfseg
