// Maps (N, H, W, C) on a CPU: to and from the layout of images, joined, split, and combined value by value.

#include <algorithm>

#include "values.h"

namespace pfseg {
namespace cpu {

namespace {

// (N, rows, columns) to (N, columns, rows), in tiles that stay in the cache.
template <class From, class To>
void transpose(int64_t N, int64_t rows, int64_t columns, const From* x, To* y) {
    const int64_t tile = 32, bands = (rows + tile - 1) / tile;
    #pragma omp parallel for collapse(2)
    for (int64_t n = 0; n < N; n++)
        for (int64_t band = 0; band < bands; band++) {
            const From* from = x + n * rows * columns;
            To* to = y + n * rows * columns;
            const int64_t first = band * tile, last = std::min(rows, first + tile);
            for (int64_t start = 0; start < columns; start += tile)
                for (int64_t column = start; column < std::min(columns, start + tile); column++)
                    for (int64_t row = first; row < last; row++)
                        to[column * rows + row] = from_float<To>(to_float(from[row * columns + column]));
        }
}

void transpose(const Array& x, const Array& y, int64_t rows, int64_t columns) {
    with_type(x.type, [&](auto from) {
        with_type(y.type, [&](auto to) {
            using From = decltype(from);
            using To = decltype(to);
            transpose(x.shape[0], rows, columns, as<From>(x), as<To>(y));
        });
    });
}

// Copies between one map and parts of its channels.
void exchange(const Array& whole, const Array* parts, int count, bool join) {
    const Maps maps(whole);
    const int64_t size = whole.type == Type::float32 ? 4 : 2;
    #pragma omp parallel for
    for (int64_t p = 0; p < maps.positions; p++) {
        char* one = as<char>(whole) + p * maps.channels * size;
        for (int i = 0; i < count; i++) {
            const int64_t bytes = parts[i].shape[3] * size;
            char* other = as<char>(parts[i]) + p * bytes;
            std::memcpy(join ? one : other, join ? other : one, bytes);
            one += bytes;
        }
    }
}

// y = value(a, b) for each pair of values.
template <class Value> void combine(const Array& a_array, const Array& b_array, const Array& y_array, Value value) {
    with_type(a_array.type, [&](auto zero) {
        using T = decltype(zero);
        const T *a = as<T>(a_array), *b = as<T>(b_array);
        T* y = as<T>(y_array);
        const int64_t size = a_array.size();
        #pragma omp parallel for simd
        for (int64_t i = 0; i < size; i++) y[i] = from_float<T>(value(to_float(a[i]), to_float(b[i])));
    });
}

}  // namespace

// x (N, C, H, W) -> (N, H, W, C)
void last_maps_to_last(const Array* in, const Array* out, const Options&) {
    transpose(in[0], out[0], in[0].shape[1], in[0].shape[2] * in[0].shape[3]);
}

// x (N, H, W, C) -> (N, C, H, W)
void last_maps_to_first(const Array* in, const Array* out, const Options&) {
    transpose(in[0], out[0], in[0].shape[1] * in[0].shape[2], in[0].shape[3]);
}

// maps -> their channels behind each other. Options: count.
void last_maps_join(const Array* in, const Array* out, const Options& options) {
    exchange(out[0], in, int(options.at("count")), true);
}

// x -> maps that share its channels. Options: count.
void last_maps_split(const Array* in, const Array* out, const Options& options) {
    exchange(in[0], out, int(options.at("count")), false);
}

// a, b -> a + b
void last_maps_add(const Array* in, const Array* out, const Options&) {
    combine(in[0], in[1], out[0], [](float a, float b) { return a + b; });
}

// a, b -> max(a + b, 0)
void last_maps_add_relu(const Array* in, const Array* out, const Options&) {
    combine(in[0], in[1], out[0], [](float a, float b) { return std::max(a + b, 0.0f); });
}

// x -> max(x, 0)
void last_maps_relu(const Array* in, const Array* out, const Options&) {
    combine(in[0], in[0], out[0], [](float x, float) { return std::max(x, 0.0f); });
}

// upstream, y of `last_maps_relu` -> gradient of x
void last_maps_relu_gradient(const Array* in, const Array* out, const Options&) {
    combine(in[0], in[1], out[0], [](float upstream, float y) { return y > 0 ? upstream : 0.0f; });
}

// x, factors (N, C) float32 -> x * factors
void last_maps_scale_channels(const Array* in, const Array* out, const Options&) {
    const Maps maps(in[0]);
    const int64_t positions = in[0].shape[1] * in[0].shape[2];
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        #pragma omp parallel for
        for (int64_t p = 0; p < maps.positions; p++) {
            const T* x = as<T>(in[0]) + p * maps.channels;
            const float* factors = floats(in[1]) + p / positions * maps.channels;
            T* y = as<T>(out[0]) + p * maps.channels;
            #pragma omp simd
            for (int64_t c = 0; c < maps.channels; c++) y[c] = from_float<T>(to_float(x[c]) * factors[c]);
        }
    });
}

// x, factor (N, 1, H, W) float32 -> x * (1 + sign * factor). Options: sign.
void last_maps_modulate(const Array* in, const Array* out, const Options& options) {
    const Maps maps(in[0]);
    const float sign = options.at("sign");
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        #pragma omp parallel for
        for (int64_t p = 0; p < maps.positions; p++) {
            const T* x = as<T>(in[0]) + p * maps.channels;
            T* y = as<T>(out[0]) + p * maps.channels;
            const float scale = 1.0f + sign * floats(in[1])[p];
            #pragma omp simd
            for (int64_t c = 0; c < maps.channels; c++) y[c] = from_float<T>(to_float(x[c]) * scale);
        }
    });
}

// x, factor, upstream -> gradients of x and factor. Options: sign.
void last_maps_modulate_gradient(const Array* in, const Array* out, const Options& options) {
    const Maps maps(in[0]);
    const float sign = options.at("sign");
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        #pragma omp parallel for
        for (int64_t p = 0; p < maps.positions; p++) {
            const T *x = as<T>(in[0]) + p * maps.channels, *upstream = as<T>(in[2]) + p * maps.channels;
            T* gradient = as<T>(out[0]) + p * maps.channels;
            const float scale = 1.0f + sign * floats(in[1])[p];
            float sum = 0;
            #pragma omp simd reduction(+:sum)
            for (int64_t c = 0; c < maps.channels; c++) {
                const float g = to_float(upstream[c]);
                sum += g * to_float(x[c]);
                gradient[c] = from_float<T>(g * scale);
            }
            floats(out[1])[p] = sign * sum;
        }
    });
}

}  // namespace cpu
}  // namespace pfseg
