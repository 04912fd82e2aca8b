// Batch normalisation of maps (N, H, W, C) on a CPU; everything per channel is (C,) float32.
//
//   y = (x - mean) * scale + shift, plus the residual where there is one, and max(0, y) where `relu` is set.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "values.h"

namespace pfseg {
namespace cpu {

namespace {

constexpr int64_t ROWS = 128;  // positions whose sums are float32; sums of those are double

// Two sums over all positions for each channel. add(p, a, b) adds what position p gives to a and b.
template <class Add> std::vector<double> sum_channels(const Maps& maps, Add add) {
    const int64_t C = maps.channels, parts = (maps.positions + ROWS - 1) / ROWS;
    std::vector<double> sums(2 * C * omp_get_max_threads());
    #pragma omp parallel
    {
        std::vector<float> own(2 * C);
        double* total = sums.data() + 2 * C * omp_get_thread_num();
        #pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++) {
            std::fill(own.begin(), own.end(), 0.0f);
            const int64_t end = std::min(maps.positions, (part + 1) * ROWS);
            for (int64_t p = part * ROWS; p < end; p++) add(p, own.data(), own.data() + C);
            for (int64_t c = 0; c < 2 * C; c++) total[c] += own[c];
        }
    }
    for (size_t i = 2 * C; i < sums.size(); i++) sums[i % (2 * C)] += sums[i];  // thread by thread: a fixed order
    return sums;
}

// Mean and biased variance; sums are of the distance to the first position, stable also far from zero.
template <class T> void moments(const Array& array, float* mean, float* variance) {
    const Maps maps(array);
    const int64_t C = maps.channels;
    const T* x = as<T>(array);
    std::vector<float> start(C);
    for (int64_t c = 0; c < C; c++) start[c] = to_float(x[c]);
    const auto sums = sum_channels(maps, [&](int64_t p, float* a, float* b) {
        const T* row = x + p * C;
        const float* from = start.data();
        #pragma omp simd
        for (int64_t c = 0; c < C; c++) {
            const float d = to_float(row[c]) - from[c];
            a[c] += d;
            b[c] += d * d;
        }
    });
    for (int64_t c = 0; c < C; c++) {
        const double shifted = sums[c] / maps.positions;
        mean[c] = start[c] + shifted;
        variance[c] = std::max(sums[C + c] / maps.positions - shifted * shifted, 0.0);
    }
}

// From the moments of `count` positions, weight, running mean and variance: scale, 1 / deviation, new running ones.
void settle(int64_t C, const float* mean, const float* variance, double count, const Array* in, const Array* out,
            const Options& options) {
    const float eps = options.at("eps"), momentum = options.at("momentum");
    const float unbiased = count / std::max(count - 1, 1.0);
    for (int64_t c = 0; c < C; c++) {
        const float inverse = 1.0f / std::sqrt(variance[c] + eps);
        floats(out[0])[c] = floats(in[0])[c] * inverse;
        floats(out[1])[c] = inverse;
        floats(out[2])[c] = floats(in[1])[c] + (mean[c] - floats(in[1])[c]) * momentum;
        floats(out[3])[c] = floats(in[2])[c] + (variance[c] * unbiased - floats(in[2])[c]) * momentum;
    }
}

template <class T, bool RELU, bool RESIDUAL>
void normalise(const Maps& maps, const T* x, const float* mean, const float* scale, const float* shift,
               const T* residual, T* y) {
    const int64_t C = maps.channels;
    #pragma omp parallel for
    for (int64_t p = 0; p < maps.positions; p++) {
        const T *from = x + p * C, *more = residual + (RESIDUAL ? p * C : 0);
        T* to = y + p * C;
        #pragma omp simd
        for (int64_t c = 0; c < C; c++) {
            float value = (to_float(from[c]) - mean[c]) * scale[c] + shift[c];
            if (RESIDUAL) value += to_float(more[c]);
            to[c] = from_float<T>(RELU ? std::max(value, 0.0f) : value);
        }
    }
}

// The gradient g of what the ReLU took: upstream, but 0 where the ReLU gave 0, which the output y shows with a residual.
template <class T, bool RELU, bool RESIDUAL> struct Passed {
    const T *upstream, *y;
    const float *scale, *shift;

    float operator()(int64_t at, int64_t c, float distance) const {
        const float g = to_float(upstream[at]);
        if (!RELU) return g;
        return (RESIDUAL ? to_float(y[at]) : distance * scale[c] + shift[c]) > 0 ? g : 0.0f;
    }
};

template <class T, bool RELU, bool RESIDUAL>
std::vector<double> gradient_sums(const Maps& maps, const T* x, const float* mean, Passed<T, RELU, RESIDUAL> passed) {
    const int64_t C = maps.channels;
    return sum_channels(maps, [&](int64_t p, float* a, float* b) {
        #pragma omp simd
        for (int64_t c = 0; c < C; c++) {
            const float d = to_float(x[p * C + c]) - mean[c], g = passed(p * C + c, c, d);
            a[c] += g;
            b[c] += g * d;
        }
    });
}

template <class T, bool RELU, bool RESIDUAL>
void gradient(const Maps& maps, const T* x, const float* mean, Passed<T, RELU, RESIDUAL> passed, const float* means,
              T* x_gradient, T* residual_gradient) {
    const int64_t C = maps.channels;
    #pragma omp parallel
    {
        const auto own = passed;  // shared, the compiler would read its pointers again after each store
        const float *totals = means, *products = means + C, *centre = mean;
        #pragma omp for
        for (int64_t p = 0; p < maps.positions; p++) {
            const T* from = x + p * C;
            T *to = x_gradient + p * C, *more = residual_gradient + (RESIDUAL ? p * C : 0);
            #pragma omp simd
            for (int64_t c = 0; c < C; c++) {
                const float d = to_float(from[c]) - centre[c], g = own(p * C + c, c, d);
                to[c] = from_float<T>(own.scale[c] * (g - totals[c] - d * products[c]));
                if (RESIDUAL) more[c] = from_float<T>(g);
            }
        }
    }
}

// Call `work` with a value of the maps' type, and the options relu and residual as constants.
template <class Work> void with_flags(const Array& x, const Options& options, Work work) {
    const bool relu = options.at("relu"), residual = options.at("residual");
    with_type(x.type, [&](auto zero) {
        using Yes = std::true_type;
        using No = std::false_type;
        if (relu) residual ? work(zero, Yes{}, Yes{}) : work(zero, Yes{}, No{});
        else residual ? work(zero, No{}, Yes{}) : work(zero, No{}, No{});
    });
}

}  // namespace

// x -> mean, biased variance, scratch
void last_batchnorm_moments(const Array* in, const Array* out, const Options&) {
    with_type(in[0].type, [&](auto zero) { moments<decltype(zero)>(in[0], floats(out[0]), floats(out[1])); });
}

// x, weight, running mean and variance -> mean, scale, 1 / deviation, new running mean and variance, scratch. Options:
// eps, momentum.
void last_batchnorm_statistics(const Array* in, const Array* out, const Options& options) {
    const Maps maps(in[0]);
    std::vector<float> variance(maps.channels);
    with_type(in[0].type, [&](auto zero) { moments<decltype(zero)>(in[0], floats(out[0]), variance.data()); });
    settle(maps.channels, floats(out[0]), variance.data(), maps.positions, in + 1, out + 1, options);
}

// mean, biased variance of `count` positions, weight, running mean and variance -> as above, from scale on
void last_batchnorm_settle(const Array* in, const Array* out, const Options& options) {
    settle(in[0].shape[0], floats(in[0]), floats(in[1]), options.at("count"), in + 2, out, options);
}

// x, mean, scale, shift, [residual], with `constant` variance, whose root with `eps` divides the scale -> y
void last_batchnorm_normalise(const Array* in, const Array* out, const Options& options) {
    const Maps maps(in[0]);
    with_flags(in[0], options, [&](auto zero, auto relu, auto residual) {
        using T = decltype(zero);
        std::vector<float> scale(floats(in[2]), floats(in[2]) + maps.channels);
        if (options.at("constant"))
            for (int64_t c = 0; c < maps.channels; c++)
                scale[c] /= std::sqrt(floats(in[residual ? 5 : 4])[c] + float(options.at("eps")));
        normalise<T, relu, residual>(maps, as<T>(in[0]), floats(in[1]), scale.data(), floats(in[3]),
                                     residual ? as<T>(in[4]) : nullptr, as<T>(out[0]));
    });
}

// x, upstream, mean, scale, shift, 1 / deviation, [y] -> gradients of weight and bias, means over the positions (2, C) of
// g and of g * (x - mean) / variance, which are 0 with `constant` moments, scratch
void last_batchnorm_gradient_sums(const Array* in, const Array* out, const Options& options) {
    const Maps maps(in[0]);
    const double share = options.at("constant") ? 0.0 : 1.0 / maps.positions;
    with_flags(in[0], options, [&](auto zero, auto relu, auto residual) {
        using T = decltype(zero);
        const Passed<T, relu, residual> passed{as<T>(in[1]), residual ? as<T>(in[6]) : nullptr, floats(in[3]),
                                               floats(in[4])};
        const auto sums = gradient_sums(maps, as<T>(in[0]), floats(in[2]), passed);
        for (int64_t c = 0, C = maps.channels; c < C; c++) {
            const double inverse = floats(in[5])[c];
            floats(out[0])[c] = sums[C + c] * inverse;
            floats(out[1])[c] = sums[c];
            floats(out[2])[c] = sums[c] * share;
            floats(out[2])[C + c] = sums[C + c] * inverse * inverse * share;
        }
    });
}

// x, upstream, mean, scale, shift, means (2, C), [y] -> gradient of x, [of the residual]
void last_batchnorm_gradient(const Array* in, const Array* out, const Options& options) {
    const Maps maps(in[0]);
    with_flags(in[0], options, [&](auto zero, auto relu, auto residual) {
        using T = decltype(zero);
        const Passed<T, relu, residual> passed{as<T>(in[1]), residual ? as<T>(in[6]) : nullptr, floats(in[3]),
                                               floats(in[4])};
        gradient(maps, as<T>(in[0]), floats(in[2]), passed, floats(in[5]), as<T>(out[0]),
                 residual ? as<T>(out[1]) : nullptr);
    });
}

}  // namespace cpu
}  // namespace pfseg
