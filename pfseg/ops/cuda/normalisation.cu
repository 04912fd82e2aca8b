// Normalisation of maps (N, H, W, C) over the channels of each position (layer) or over groups of a sample's channels.
//
//   y = (x - mean) * inverse * weight + bias, with inverse = 1 / sqrt(variance + eps), the variance being biased.
#include "sums.h"

namespace pfseg {
namespace {

constexpr int THREADS = 128;

// Sum over a block, which every thread gets. `memory` holds a float for each thread.
__device__ inline float shared_sum(float value, float* memory) {
    const float sum = block_sum(value, memory);
    __syncthreads();
    return sum;
}

// What a block normalises: `rows` rows of `width` values, `step` apart, the first at `start`.
struct Region {
    int64_t start, rows, step;
    int width;
    __device__ int64_t count() const { return rows * width; }
    __device__ int64_t at(int64_t i) const { return start + i / width * step + i % width; }
};

// A position's channels; or a group of channels at all positions of a sample.
struct Layers {
    int64_t positions;
    int channels;
    __device__ Region region(int64_t block) const { return {block * channels, 1, channels, channels}; }
    __device__ int channel(int64_t, int64_t i) const { return static_cast<int>(i); }
};
struct Groups {
    int64_t positions;  // of a sample
    int channels, groups;
    __device__ Region region(int64_t block) const {
        const int width = channels / groups;
        return {block / groups * positions * channels + block % groups * width, positions, channels, width};
    }
    __device__ int channel(int64_t block, int64_t i) const {
        const int width = channels / groups;
        return static_cast<int>(block % groups * width + i % width);
    }
};

// One block for each region.
template <class T, class Kind>
__global__ void normalise(Kind kind, const T* __restrict__ x, const float* __restrict__ weight,
                          const float* __restrict__ bias, float eps, bool relu, T* __restrict__ y,
                          float* __restrict__ means, float* __restrict__ inverses) {
    __shared__ float memory[THREADS];
    const Region r = kind.region(blockIdx.x);
    const int64_t count = r.count();
    float sum = 0, square = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += to_float(x[r.at(i)]);
    const float mean = shared_sum(sum, memory) / count;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
        const float d = to_float(x[r.at(i)]) - mean;
        square += d * d;
    }
    const float inverse = 1.0f / sqrtf(shared_sum(square, memory) / count + eps);
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
        const int c = kind.channel(blockIdx.x, i);
        const float v = (to_float(x[r.at(i)]) - mean) * inverse * weight[c] + bias[c];
        y[r.at(i)] = from_float<T>(relu ? max(v, 0.0f) : v);
    }
    if (threadIdx.x == 0) means[blockIdx.x] = mean, inverses[blockIdx.x] = inverse;
}

// The gradient of x. `bias` is read only with `relu`.
template <class T, class Kind>
__global__ void gradient(Kind kind, const T* __restrict__ x, const T* __restrict__ upstream,
                         const float* __restrict__ weight, const float* __restrict__ bias, bool relu,
                         const float* __restrict__ means, const float* __restrict__ inverses, T* __restrict__ out) {
    __shared__ float memory[THREADS];
    const Region r = kind.region(blockIdx.x);
    const int64_t count = r.count();
    const float mean = means[blockIdx.x], inverse = inverses[blockIdx.x];
    float sum = 0, product = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
        const int c = kind.channel(blockIdx.x, i);
        const float d = (to_float(x[r.at(i)]) - mean) * inverse;
        if (relu && d * weight[c] + bias[c] <= 0) continue;
        const float g = to_float(upstream[r.at(i)]) * weight[c];
        sum += g;
        product += g * d;
    }
    const float average = shared_sum(sum, memory) / count, share = shared_sum(product, memory) / count;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
        const int c = kind.channel(blockIdx.x, i);
        const float d = (to_float(x[r.at(i)]) - mean) * inverse;
        const bool kept = !relu || d * weight[c] + bias[c] > 0;
        const float g = kept ? to_float(upstream[r.at(i)]) * weight[c] : 0.0f;
        out[r.at(i)] = from_float<T>(inverse * (g - average - d * share));
    }
}

// Sums over all positions of g * d and g: gradients of weight and bias. Each position has a mean and an inverse of its own.
template <class T, int N>
struct LayerSums {
    const T *x, *upstream;
    const float *means, *inverses;
    int channels;
    __device__ void prepare(int) {}
    __device__ void add(int64_t position, int first, float (*sums)[N]) const {
        const int64_t at = position * channels + first;
        const auto px = *reinterpret_cast<const Pack<T, N>*>(x + at);
        const auto pu = *reinterpret_cast<const Pack<T, N>*>(upstream + at);
        for (int k = 0; k < N; k++) {
            const float g = to_float(pu.values[k]);
            sums[0][k] += g * (to_float(px.values[k]) - means[position]) * inverses[position];
            sums[1][k] += g;
        }
    }
};

struct FinishLayer {
    float *weight, *bias;
    __device__ void operator()(int c, float product, float total) const {
        weight[c] = product;
        bias[c] = total;
    }
};

// The same of each sample with the statistics of groups. Blocks (channels, samples).
template <class T>
__global__ void group_sums(Groups kind, const T* __restrict__ x, const T* __restrict__ upstream,
                           const float* __restrict__ weight, const float* __restrict__ bias, bool relu,
                           const float* __restrict__ means, const float* __restrict__ inverses,
                           float* __restrict__ weight_sums, float* __restrict__ bias_sums) {
    __shared__ float memory[THREADS];
    const int c = blockIdx.x;
    const int64_t group = int64_t(blockIdx.y) * kind.groups + c / (kind.channels / kind.groups);
    const int64_t start = blockIdx.y * kind.positions * kind.channels + c;
    float sum = 0, product = 0;
    for (int64_t p = threadIdx.x; p < kind.positions; p += THREADS) {
        const float d = (to_float(x[start + p * kind.channels]) - means[group]) * inverses[group];
        if (relu && d * weight[c] + bias[c] <= 0) continue;
        const float g = to_float(upstream[start + p * kind.channels]);
        sum += g;
        product += g * d;
    }
    sum = shared_sum(sum, memory);
    product = shared_sum(product, memory);
    if (threadIdx.x == 0) {
        bias_sums[int64_t(blockIdx.y) * kind.channels + c] = sum;
        weight_sums[int64_t(blockIdx.y) * kind.channels + c] = product;
    }
}

Layers layers(const Array& x) { return {x.size() / x.shape[3], static_cast<int>(x.shape[3])}; }
Groups groups(const Array& x, const Array& means) {
    return {x.shape[1] * x.shape[2], static_cast<int>(x.shape[3]), static_cast<int>(means.shape[1])};
}

}  // namespace

// x, weight, bias (C) -> y, means and inverses (N, H, W). Options: eps.
void normalisation_layer(const Array* in, const Array* out, const Options& options) {
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        launch(normalise<T, Layers>, blocks(out[1].size(), 1), THREADS, 0, layers(in[0]), as<T>(in[0]), as<float>(in[1]),
               as<float>(in[2]), float(options.at("eps")), false, as<T>(out[0]), as<float>(out[1]), as<float>(out[2]));
    });
}

// x, upstream, weight, means, inverses -> gradients of x, weight and bias, scratch (1024 * C)
void normalisation_layer_gradient(const Array* in, const Array* out, const Options&) {
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        const float* none = nullptr;
        launch(gradient<T, Layers>, blocks(in[3].size(), 1), THREADS, 0, layers(in[0]), as<T>(in[0]), as<T>(in[1]),
               as<float>(in[2]), none, false, as<float>(in[3]), as<float>(in[4]), as<T>(out[0]));
    });
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        const LayerSums<T, pack> value{as<T>(in[0]), as<T>(in[1]), as<float>(in[3]), as<float>(in[4]),
                                       static_cast<int>(in[0].shape[3])};
        const FinishLayer finish{as<float>(out[1]), as<float>(out[2])};
        sum_channels<pack>(geometry<pack>(in[0]), value, finish, out[3]);
    });
}

// x, weight, bias (C) -> y, means and inverses (N, groups). Options: eps, relu.
void normalisation_group(const Array* in, const Array* out, const Options& options) {
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        launch(normalise<T, Groups>, blocks(out[1].size(), 1), THREADS, 0, groups(in[0], out[1]), as<T>(in[0]),
               as<float>(in[1]), as<float>(in[2]), float(options.at("eps")), bool(options.at("relu")), as<T>(out[0]),
               as<float>(out[1]), as<float>(out[2]));
    });
}

// x, upstream, weight, bias, means, inverses -> gradient of x, and what each sample adds, (N, C), to those of weight and
// bias. Options: relu.
void normalisation_group_gradient(const Array* in, const Array* out, const Options& options) {
    const bool relu = options.at("relu");
    const Groups kind = groups(in[0], in[4]);
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        launch(gradient<T, Groups>, blocks(in[4].size(), 1), THREADS, 0, kind, as<T>(in[0]), as<T>(in[1]),
               as<float>(in[2]), as<float>(in[3]), relu, as<float>(in[4]), as<float>(in[5]), as<T>(out[0]));
        const dim3 grid(static_cast<unsigned>(in[0].shape[3]), static_cast<unsigned>(in[0].shape[0]));
        launch(group_sums<T>, grid, THREADS, 0, kind, as<T>(in[0]), as<T>(in[1]), as<float>(in[2]), as<float>(in[3]),
               relu, as<float>(in[4]), as<float>(in[5]), as<float>(out[1]), as<float>(out[2]));
    });
}

}  // namespace pfseg
