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

template <class T>
struct FinishMoments {
    const T* x;
    float count;
    float *mean, *variance;
    __device__ void operator()(int c, float sum, float squares) const {
        const float shifted = sum / count;
        mean[c] = to_float(x[c]) + shifted;
        variance[c] = max(squares / count - shifted * shifted, 0.0f);
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

struct FinishSums {
    float *total, *product;
    __device__ void operator()(int c, float first, float second) const { total[c] = first, product[c] = second; }
};

template <class T, int N, bool RELU, bool RESIDUAL>
__global__ void normalise(int64_t packs, int channels, const T* x, const float* mean, const float* scale,
                          const float* shift, const T* residual, T* y) {
    for (int64_t p = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; p < packs; p += int64_t(gridDim.x) * blockDim.x) {
        const int first = static_cast<int>(p * N % channels);
        const auto px = reinterpret_cast<const Pack<T, N>*>(x)[p];
        Pack<T, N> pr, py;
        if (RESIDUAL) pr = reinterpret_cast<const Pack<T, N>*>(residual)[p];
        for (int i = 0; i < N; i++) {
            float value = (to_float(px.values[i]) - mean[first + i]) * scale[first + i] + shift[first + i];
            if (RESIDUAL) value += to_float(pr.values[i]);
            py.values[i] = from_float<T>(RELU ? max(value, 0.0f) : value);
        }
        reinterpret_cast<Pack<T, N>*>(y)[p] = py;
    }
}

template <class T, int N, bool RELU, bool RESIDUAL>
__global__ void gradient(int64_t packs, int channels, const T* x, const T* upstream, const T* y, const float* mean,
                         const float* scale, const float* shift, const float* total, const float* product, T* x_gradient,
                         T* residual_gradient) {
    for (int64_t p = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; p < packs; p += int64_t(gridDim.x) * blockDim.x) {
        const int first = static_cast<int>(p * N % channels);
        const auto px = reinterpret_cast<const Pack<T, N>*>(x)[p];
        const auto pg = reinterpret_cast<const Pack<T, N>*>(upstream)[p];
        Pack<T, N> py, gx, gr;
        if (RELU && RESIDUAL) py = reinterpret_cast<const Pack<T, N>*>(y)[p];
        for (int i = 0; i < N; i++) {
            const int c = first + i;
            const float d = to_float(px.values[i]) - mean[c];
            const bool kept = !RELU || (RESIDUAL ? to_float(py.values[i]) > 0 : d * scale[c] + shift[c] > 0);
            const float g = kept ? to_float(pg.values[i]) : 0.0f;
            gx.values[i] = from_float<T>(scale[c] * (g - total[c] - d * product[c]));
            gr.values[i] = from_float<T>(g);
        }
        reinterpret_cast<Pack<T, N>*>(x_gradient)[p] = gx;
        if (RESIDUAL) reinterpret_cast<Pack<T, N>*>(residual_gradient)[p] = gr;
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
        const Moments<T, N> value{as<T>(in[0]), g.channels};
        const FinishMoments<T> finish{as<T>(in[0]), float(g.positions), as<float>(out[0]), as<float>(out[1])};
        sum_channels<N>(g, value, finish, out[2]);
    });
}

// x, mean, scale, shift (C), [residual] -> y
void batchnorm_normalise(const Array* in, const Array* out, const Options& options) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        constexpr int N = pack;
        const int64_t packs = in[0].size() / N;
        with_flags(options.at("relu"), options.at("residual"), [&](auto relu, auto residual) {
            launch(normalise<T, N, relu, residual>, grid_of(packs), 256, 0, packs, int(in[0].shape[3]), as<T>(in[0]),
                   as<float>(in[1]), as<float>(in[2]), as<float>(in[3]), residual ? as<T>(in[4]) : nullptr, as<T>(out[0]));
        });
    });
}

// x, upstream, mean, scale, shift, [y] -> sums (C) of g and of g * (x - mean), scratch
void batchnorm_gradient_sums(const Array* in, const Array* out, const Options& options) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        constexpr int N = pack;
        const Geometry g = geometry<N>(in[0]);
        with_flags(options.at("relu"), options.at("residual"), [&](auto relu, auto residual) {
            const GradientSums<T, N, relu, residual> value{
                as<T>(in[0]), as<T>(in[1]), residual ? as<T>(in[5]) : nullptr,
                as<float>(in[2]), as<float>(in[3]), as<float>(in[4]), g.channels};
            sum_channels<N>(g, value, FinishSums{as<float>(out[0]), as<float>(out[1])}, out[2]);
        });
    });
}

// x, upstream, mean, scale, shift, total, product (C; means over the positions, the second over the variance), [y]
// -> gradient of x, [of the residual]
void batchnorm_gradient(const Array* in, const Array* out, const Options& options) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        constexpr int N = pack;
        const int64_t packs = in[0].size() / N;
        with_flags(options.at("relu"), options.at("residual"), [&](auto relu, auto residual) {
            launch(gradient<T, N, relu, residual>, grid_of(packs), 256, 0, packs, int(in[0].shape[3]), as<T>(in[0]), as<T>(in[1]),
                   residual ? as<T>(in[7]) : nullptr, as<float>(in[2]), as<float>(in[3]), as<float>(in[4]),
                   as<float>(in[5]), as<float>(in[6]), as<T>(out[0]), residual ? as<T>(out[1]) : nullptr);
        });
    });
}

}  // namespace pfseg
