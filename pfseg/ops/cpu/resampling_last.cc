// Resampling of maps (N, H, W, C) on a CPU: linear and separable, as in `resampling.cc`, and pooling with square windows.

#include <algorithm>
#include <vector>

#include "band.h"
#include "values.h"

namespace pfseg {
namespace cpu {

namespace {

// Rows first, into a line of float32 that stays in the cache, then columns.
template <class T>
void resample(int64_t N, int64_t H, int64_t W, int64_t C, const T* x, Band vertical, Band horizontal, T* y) {
    const int64_t h = vertical.rows, w = horizontal.rows;
    #pragma omp parallel
    {
        std::vector<float> line(W * C), sum(C);
        #pragma omp for collapse(2)
        for (int64_t n = 0; n < N; n++)
            for (int64_t i = 0; i < h; i++) {
                std::fill(line.begin(), line.end(), 0.0f);
                for (int64_t k = 0; k < vertical.k; k++) {
                    const float weight = vertical.weights[i * vertical.k + k];
                    if (weight == 0) continue;
                    const T* from = x + (n * H + vertical.starts[i] + k) * W * C;
                    float* to = line.data();
                    #pragma omp simd
                    for (int64_t j = 0; j < W * C; j++) to[j] += weight * to_float(from[j]);
                }
                for (int64_t j = 0; j < w; j++) {
                    std::fill(sum.begin(), sum.end(), 0.0f);
                    float* total = sum.data();
                    for (int64_t k = 0; k < horizontal.k; k++) {
                        const float weight = horizontal.weights[j * horizontal.k + k];
                        if (weight == 0) continue;
                        const float* from = line.data() + (horizontal.starts[j] + k) * C;
                        #pragma omp simd
                        for (int64_t c = 0; c < C; c++) total[c] += weight * from[c];
                    }
                    T* to = y + ((n * h + i) * w + j) * C;
                    #pragma omp simd
                    for (int64_t c = 0; c < C; c++) to[c] = from_float<T>(total[c]);
                }
            }
    }
}

struct Windows {
    int64_t N, H, W, C, h, w;  // of x and y
    int64_t size, stride, padding;

    Windows(const Array& x, const Array& y, const Options& options)
        : N(x.shape[0]), H(x.shape[1]), W(x.shape[2]), C(x.shape[3]), h(y.shape[1]), w(y.shape[2]),
          size(options.at("size")), stride(options.at("stride")), padding(options.at("padding")) {}

    // Calls work(tap, position in x's map) for each tap of a window that lies inside.
    template <class Work> void taps(int64_t row, int64_t column, Work work) const {
        for (int64_t r = 0; r < size; r++)
            for (int64_t q = 0; q < size; q++) {
                const int64_t y = row * stride - padding + r, x = column * stride - padding + q;
                if (y >= 0 && y < H && x >= 0 && x < W) work(r * size + q, y * W + x);
            }
    }
};

// With MAX the greatest values and which tap has the first of them, else sums divided by the window's whole size.
template <class T, bool MAX> void pool(const Windows& g, const T* x, T* y, uint8_t* winners) {
    const float scale = MAX ? 1.0f : 1.0f / (g.size * g.size);
    #pragma omp parallel
    {
        std::vector<float> best(g.C);
        std::vector<uint8_t> taps(g.C);
        #pragma omp for collapse(2)
        for (int64_t n = 0; n < g.N; n++)
            for (int64_t i = 0; i < g.h; i++)
                for (int64_t j = 0; j < g.w; j++) {
                    float* values = best.data();
                    uint8_t* winner = taps.data();
                    bool none = true;
                    std::fill(best.begin(), best.end(), 0.0f);
                    g.taps(i, j, [&](int64_t tap, int64_t at) {
                        const T* from = x + (n * g.H * g.W + at) * g.C;
                        #pragma omp simd
                        for (int64_t c = 0; c < g.C; c++) {
                            const float value = to_float(from[c]);
                            const bool better = !MAX || none || value > values[c];
                            winner[c] = MAX && better ? uint8_t(tap) : winner[c];
                            values[c] = MAX ? (better ? value : values[c]) : values[c] + value;
                        }
                        none = false;
                    });
                    const int64_t to = ((n * g.h + i) * g.w + j) * g.C;
                    for (int64_t c = 0; c < g.C; c++) y[to + c] = from_float<T>(values[c] * scale);
                    if (MAX) std::copy(taps.begin(), taps.end(), winners + to);
                }
    }
}

// Each thread gathers rows of x: position i lies in the windows from (i + padding - size + stride) / stride on.
template <class T, bool MAX>
void pool_gradient(const Windows& g, const T* upstream, const uint8_t* winners, T* gradient) {
    const float scale = MAX ? 1.0f : 1.0f / (g.size * g.size);
    const auto first = [&](int64_t i) { return std::max<int64_t>(0, i + g.padding - g.size + g.stride) / g.stride; };
    #pragma omp parallel
    {
        std::vector<float> sums(g.C);
        #pragma omp for collapse(2)
        for (int64_t n = 0; n < g.N; n++)
            for (int64_t row = 0; row < g.H; row++)
                for (int64_t column = 0; column < g.W; column++) {
                    float* sum = sums.data();
                    std::fill(sums.begin(), sums.end(), 0.0f);
                    for (int64_t i = first(row); i <= std::min(g.h - 1, (row + g.padding) / g.stride); i++)
                        for (int64_t j = first(column); j <= std::min(g.w - 1, (column + g.padding) / g.stride); j++) {
                            const int64_t at = ((n * g.h + i) * g.w + j) * g.C;
                            const int tap = (row - i * g.stride + g.padding) * g.size + column - j * g.stride + g.padding;
                            #pragma omp simd
                            for (int64_t c = 0; c < g.C; c++)
                                sum[c] += !MAX || winners[at + c] == tap ? to_float(upstream[at + c]) : 0.0f;
                        }
                    T* to = gradient + ((n * g.H + row) * g.W + column) * g.C;
                    for (int64_t c = 0; c < g.C; c++) to[c] = from_float<T>(sum[c] * scale);
                }
    }
}

template <bool MAX> void pool(const Array* in, const Array* out, const Options& options) {
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        pool<T, MAX>(Windows(in[0], out[0], options), as<T>(in[0]), as<T>(out[0]), MAX ? as<uint8_t>(out[1]) : nullptr);
    });
}

template <bool MAX> void pool_gradient(const Array* in, const Array* out, const Options& options) {
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        pool_gradient<T, MAX>(Windows(out[0], in[0], options), as<T>(in[0]), MAX ? as<uint8_t>(in[1]) : nullptr,
                              as<T>(out[0]));
    });
}

}  // namespace

// x (N, H, W, C), weights and starts for its rows, and for its columns -> y
void last_resampling_separable(const Array* in, const Array* out, const Options&) {
    const int64_t* x = in[0].shape;
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        resample(x[0], x[1], x[2], x[3], as<T>(in[0]), {in[1], in[2]}, {in[3], in[4]}, as<T>(out[0]));
    });
}

// x -> y, the tap of each window that won (uint8, of y's shape). Options: size (at most 16), stride, padding.
void last_pool_max(const Array* in, const Array* out, const Options& options) { pool<true>(in, out, options); }

// upstream, winners -> gradient of x
void last_pool_max_gradient(const Array* in, const Array* out, const Options& options) {
    pool_gradient<true>(in, out, options);
}

// x -> y
void last_pool_mean(const Array* in, const Array* out, const Options& options) { pool<false>(in, out, options); }

// upstream -> gradient of x
void last_pool_mean_gradient(const Array* in, const Array* out, const Options& options) {
    pool_gradient<false>(in, out, options);
}

}  // namespace cpu
}  // namespace pfseg
