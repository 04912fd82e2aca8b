// Pooling of maps (N, H, W, C) with square windows at a stride, padded on all sides. Gradients gather.
#include "device.h"

namespace pfseg {
namespace {

struct Windows {
    int height, width, channels;       // of x
    int out_height, out_width;         // of y
    int size, stride, padding;

    Windows(const Array& x, const Array& y, const Options& options)
        : height(int(x.shape[1])), width(int(x.shape[2])), channels(int(x.shape[3])), out_height(int(y.shape[1])),
          out_width(int(y.shape[2])), size(int(options.at("size"))), stride(int(options.at("stride"))),
          padding(int(options.at("padding"))) {}

    // First and last window that position i of a side lies in, of `count` windows.
    __device__ int first(int i) const { return max(0, i + padding - size + stride) / stride; }
    __device__ int last(int i, int count) const { return min(count - 1, (i + padding) / stride); }
};

// Blocks (rows of all maps, chunks of a row); each thread has a pack of channels. MAX also stores which position of the
// window, row by row, has the first of the greatest values; else the sum is divided by the window's size, padding included.
template <class T, int N, bool MAX>
__global__ void pool(Windows w, const T* __restrict__ x, T* __restrict__ y, uint8_t* __restrict__ winners) {
    const int packs = w.channels / N, item = blockIdx.y * blockDim.x + threadIdx.x;
    if (item >= w.out_width * packs) return;
    const int top = int(blockIdx.x % w.out_height) * w.stride - w.padding, left = item / packs * w.stride - w.padding;
    const T* map = x + blockIdx.x / w.out_height * int64_t(w.height) * w.width * w.channels + item % packs * N;
    float values[N] = {};
    Pack<uint8_t, N> winner;
    bool none = true;
    for (int r = 0; r < w.size; r++) {
        if (top + r < 0 || top + r >= w.height) continue;
        for (int c = 0; c < w.size; c++) {
            if (left + c < 0 || left + c >= w.width) continue;
            const int64_t at = ((top + r) * int64_t(w.width) + left + c) * w.channels;
            const auto pack = *reinterpret_cast<const Pack<T, N>*>(map + at);
            for (int i = 0; i < N; i++) {
                const float value = to_float(pack.values[i]);
                if (!MAX) values[i] += value;
                else if (none || value > values[i]) values[i] = value, winner.values[i] = uint8_t(r * w.size + c);
            }
            none = false;
        }
    }
    const int64_t p = blockIdx.x * int64_t(w.out_width) * packs + item;
    const float scale = MAX ? 1.0f : 1.0f / float(w.size * w.size);
    Pack<T, N> result;
    for (int i = 0; i < N; i++) result.values[i] = from_float<T>(values[i] * scale);
    reinterpret_cast<Pack<T, N>*>(y)[p] = result;
    if (MAX) reinterpret_cast<Pack<uint8_t, N>*>(winners)[p] = winner;
}

template <class T, int N, bool MAX>
__global__ void pool_gradient(Windows w, const T* __restrict__ upstream, const uint8_t* __restrict__ winners,
                              T* __restrict__ gradient) {
    const int packs = w.channels / N, item = blockIdx.y * blockDim.x + threadIdx.x;
    if (item >= w.width * packs) return;
    const int row = blockIdx.x % w.height, column = item / packs;
    const int64_t map = blockIdx.x / w.height * int64_t(w.out_height) * w.out_width * packs + item % packs;
    float sums[N] = {};
    for (int r = w.first(row); r <= w.last(row, w.out_height); r++)
        for (int c = w.first(column); c <= w.last(column, w.out_width); c++) {
            const int64_t p = map + (r * int64_t(w.out_width) + c) * packs;
            const auto pack = reinterpret_cast<const Pack<T, N>*>(upstream)[p];
            Pack<uint8_t, N> winner;
            if (MAX) winner = reinterpret_cast<const Pack<uint8_t, N>*>(winners)[p];
            const int tap = (row - r * w.stride + w.padding) * w.size + column - c * w.stride + w.padding;
            for (int i = 0; i < N; i++)
                if (!MAX || winner.values[i] == tap) sums[i] += to_float(pack.values[i]);
        }
    const float scale = MAX ? 1.0f : 1.0f / float(w.size * w.size);
    Pack<T, N> result;
    for (int i = 0; i < N; i++) result.values[i] = from_float<T>(sums[i] * scale);
    reinterpret_cast<Pack<T, N>*>(gradient)[blockIdx.x * int64_t(w.width) * packs + item] = result;
}

// Blocks and threads for every pack of maps (N, H, W, C).
std::pair<dim3, dim3> by_rows(const Array& x, int pack) {
    const int64_t items = x.shape[2] * x.shape[3] / pack;
    const unsigned threads = unsigned(std::min<int64_t>(256, (items + 31) / 32 * 32));
    return {dim3(unsigned(x.shape[0] * x.shape[1]), blocks(items, threads)), dim3(threads)};
}

template <bool MAX>
void pool(const Array* in, const Array* out, const Options& options) {
    const Windows w(in[0], out[0], options);
    with_packs(in[0].type, w.channels, [&](auto zero, auto pack) {
        using T = decltype(zero);
        const auto [grid, block] = by_rows(out[0], pack);
        launch(pool<T, pack, MAX>, grid, block, 0, w, as<const T>(in[0]), as<T>(out[0]), MAX ? as<uint8_t>(out[1]) : nullptr);
    });
}

template <bool MAX>
void pool_gradient(const Array* in, const Array* out, const Options& options) {
    const Windows w(out[0], in[0], options);
    with_packs(in[0].type, w.channels, [&](auto zero, auto pack) {
        using T = decltype(zero);
        const auto [grid, block] = by_rows(out[0], pack);
        launch(pool_gradient<T, pack, MAX>, grid, block, 0, w, as<const T>(in[0]), MAX ? as<const uint8_t>(in[1]) : nullptr,
               as<T>(out[0]));
    });
}

}  // namespace

// x -> y, which position of each window won (uint8, of y's shape)
void pool_max(const Array* in, const Array* out, const Options& options) { pool<true>(in, out, options); }

// upstream, winners -> gradient of x
void pool_max_gradient(const Array* in, const Array* out, const Options& options) { pool_gradient<true>(in, out, options); }

// x -> y
void pool_mean(const Array* in, const Array* out, const Options& options) { pool<false>(in, out, options); }

// upstream -> gradient of x
void pool_mean_gradient(const Array* in, const Array* out, const Options& options) { pool_gradient<false>(in, out, options); }

}  // namespace pfseg
