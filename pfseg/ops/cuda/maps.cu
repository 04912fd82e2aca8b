// Maps (N, H, W, C): to and from the layout of images, joined, split, and combined value by value.
#include "device.h"

namespace pfseg {
namespace {

constexpr int TILE = 32, STRIP = 8;

// (N, rows, columns) to (N, columns, rows), tile by tile through shared memory.
template <class From, class To>
__global__ void transpose(int64_t rows, int64_t columns, const From* x, To* y) {
    __shared__ float tile[TILE][TILE + 1];
    const int64_t column = blockIdx.x * int64_t(TILE) + threadIdx.x, first = blockIdx.y * int64_t(TILE);
    const int64_t offset = blockIdx.z * rows * columns;
    for (int i = threadIdx.y; i < TILE; i += STRIP)
        if (first + i < rows && column < columns) tile[i][threadIdx.x] = to_float(x[offset + (first + i) * columns + column]);
    __syncthreads();
    const int64_t row = first + threadIdx.x, start = blockIdx.x * int64_t(TILE);
    for (int i = threadIdx.y; i < TILE; i += STRIP)
        if (start + i < columns && row < rows)
            y[offset + (start + i) * rows + row] = from_float<To>(tile[threadIdx.x][i]);
}

void transpose(int64_t rows, int64_t columns, const Array& x, const Array& y) {
    with_type(x.type, [&](auto from) {
        with_type(y.type, [&](auto to) {
            using From = decltype(from);
            using To = decltype(to);
            const dim3 grid(blocks(columns, TILE), blocks(rows, TILE), static_cast<unsigned>(x.shape[0]));
            launch(transpose<From, To>, grid, dim3(TILE, STRIP), 0, rows, columns, as<From>(x), as<To>(y));
        });
    });
}

constexpr int MAX_MAPS = 8;

struct Parts {
    void* data[MAX_MAPS];
    int starts[MAX_MAPS + 1];  // channels of part i: starts[i] to starts[i + 1]
    int count;
};

// Copies between one map and parts of its channels.
template <class T, int N, bool JOIN>
__global__ void exchange(int64_t packs, int channels, T* whole, Parts parts) {
    for (int64_t p = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; p < packs; p += int64_t(gridDim.x) * blockDim.x) {
        const int64_t position = p * N / channels;
        const int c = static_cast<int>(p * N - position * channels);
        int part = 0;
        while (c >= parts.starts[part + 1]) part++;
        const int width = parts.starts[part + 1] - parts.starts[part];
        T* other = static_cast<T*>(parts.data[part]) + position * width + c - parts.starts[part];
        if (JOIN) reinterpret_cast<Pack<T, N>*>(whole)[p] = *reinterpret_cast<const Pack<T, N>*>(other);
        else *reinterpret_cast<Pack<T, N>*>(other) = reinterpret_cast<const Pack<T, N>*>(whole)[p];
    }
}

template <bool JOIN>
void exchange(const Array& whole, const Array* arrays, int count) {
    if (count > MAX_MAPS) throw std::runtime_error("more than 8 maps to join or split");
    Parts parts;
    parts.count = count;
    parts.starts[0] = 0;
    int64_t divisor = 8;  // what divides the width of every part
    for (int i = 0; i < count; i++) {
        parts.data[i] = arrays[i].data;
        parts.starts[i + 1] = parts.starts[i] + static_cast<int>(arrays[i].shape[3]);
        while (arrays[i].shape[3] % divisor) divisor /= 2;
    }
    with_packs(whole.type, divisor, [&](auto zero, auto pack) {
        using T = decltype(zero);
        const int64_t packs = whole.size() / pack;
        launch(exchange<T, pack, JOIN>, grid_of(packs), 256, 0, packs, int(whole.shape[3]), as<T>(whole), parts);
    });
}

template <class T, int N>
__global__ void add_relu(int64_t packs, const T* a, const T* b, T* y) {
    for (int64_t p = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; p < packs; p += int64_t(gridDim.x) * blockDim.x) {
        const auto pa = reinterpret_cast<const Pack<T, N>*>(a)[p], pb = reinterpret_cast<const Pack<T, N>*>(b)[p];
        Pack<T, N> py;
        for (int i = 0; i < N; i++) py.values[i] = from_float<T>(max(to_float(pa.values[i]) + to_float(pb.values[i]), 0.0f));
        reinterpret_cast<Pack<T, N>*>(y)[p] = py;
    }
}

// y = x times a factor for each sample and channel.
template <class T, int N>
__global__ void scale_channels(int64_t packs, int channels, int64_t positions, const T* x, const float* factors, T* y) {
    for (int64_t p = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; p < packs; p += int64_t(gridDim.x) * blockDim.x) {
        const int64_t position = p * N / channels;
        const float* own = factors + position / positions * channels + (p * N - position * channels);
        const auto px = reinterpret_cast<const Pack<T, N>*>(x)[p];
        Pack<T, N> py;
        for (int i = 0; i < N; i++) py.values[i] = from_float<T>(to_float(px.values[i]) * own[i]);
        reinterpret_cast<Pack<T, N>*>(y)[p] = py;
    }
}

// One thread for each pack of channels: y = x * (1 + sign * factor of the position).
template <class T, int N>
__global__ void modulate(int64_t packs, int channels, float sign, const T* x, const float* factor, T* y) {
    for (int64_t p = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; p < packs; p += int64_t(gridDim.x) * blockDim.x) {
        const float scale = 1.0f + sign * factor[p * N / channels];
        const auto px = reinterpret_cast<const Pack<T, N>*>(x)[p];
        Pack<T, N> py;
        for (int i = 0; i < N; i++) py.values[i] = from_float<T>(to_float(px.values[i]) * scale);
        reinterpret_cast<Pack<T, N>*>(y)[p] = py;
    }
}

// One block for each position: the gradients of both.
template <class T>
__global__ void modulate_gradient(int channels, float sign, const T* x, const float* factor, const T* upstream,
                                  T* x_gradient, float* factor_gradient) {
    __shared__ float memory[128];
    const int64_t start = blockIdx.x * int64_t(channels);
    const float scale = 1.0f + sign * factor[blockIdx.x];
    float sum = 0;
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        const float g = to_float(upstream[start + c]);
        sum += g * to_float(x[start + c]);
        x_gradient[start + c] = from_float<T>(g * scale);
    }
    sum = block_sum(sum, memory);
    if (threadIdx.x == 0) factor_gradient[blockIdx.x] = sign * sum;
}

}  // namespace

// x (N, C, H, W) -> (N, H, W, C)
void maps_to_last(const Array* in, const Array* out, const Options&) {
    transpose(in[0].shape[1], in[0].shape[2] * in[0].shape[3], in[0], out[0]);
}

// x (N, H, W, C) -> (N, C, H, W)
void maps_to_first(const Array* in, const Array* out, const Options&) {
    transpose(in[0].shape[1] * in[0].shape[2], in[0].shape[3], in[0], out[0]);
}

// up to 8 maps -> their channels behind each other
void maps_join(const Array* in, const Array* out, const Options& options) {
    exchange<true>(out[0], in, static_cast<int>(options.at("count")));
}

// x -> up to 8 maps that share its channels
void maps_split(const Array* in, const Array* out, const Options& options) {
    exchange<false>(in[0], out, static_cast<int>(options.at("count")));
}

// a, b -> max(a + b, 0)
void maps_add_relu(const Array* in, const Array* out, const Options&) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        const int64_t packs = in[0].size() / pack;
        launch(add_relu<T, pack>, grid_of(packs), 256, 0, packs, as<T>(in[0]), as<T>(in[1]), as<T>(out[0]));
    });
}

// x, factors (N, C) float32 -> x * factors
void maps_scale_channels(const Array* in, const Array* out, const Options&) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        const int64_t packs = in[0].size() / pack;
        launch(scale_channels<T, pack>, grid_of(packs), 256, 0, packs, int(in[0].shape[3]),
               in[0].shape[1] * in[0].shape[2], as<T>(in[0]), as<float>(in[1]), as<T>(out[0]));
    });
}

// x, factor (N, 1, H, W) float32 -> x * (1 + sign * factor)
void maps_modulate(const Array* in, const Array* out, const Options& options) {
    with_packs(in[0].type, in[0].shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        const int64_t packs = in[0].size() / pack;
        launch(modulate<T, pack>, grid_of(packs), 256, 0, packs, int(in[0].shape[3]), float(options.at("sign")),
               as<T>(in[0]), as<float>(in[1]), as<T>(out[0]));
    });
}

// x, factor, upstream -> gradients of x and factor
void maps_modulate_gradient(const Array* in, const Array* out, const Options& options) {
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        const auto positions = static_cast<unsigned>(in[1].size());
        launch(modulate_gradient<T>, positions, 128, 0, int(in[0].shape[3]), float(options.at("sign")), as<T>(in[0]),
               as<float>(in[1]), as<T>(in[2]), as<T>(out[0]), as<float>(out[1]));
    });
}

}  // namespace pfseg
