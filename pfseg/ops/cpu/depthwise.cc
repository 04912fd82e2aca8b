// Depthwise convolution of stride 1 on a CPU, padded such that maps keep their size.
//
// x, y and upstream (N, C, H, W), w (C, 1, h, w) with odd h and w. A plane at a time is copied between borders of zeros,
// where it stays in the cache, and is then read as often as there are taps.

#include <algorithm>

#include "functions.h"
#include "planes.h"

namespace pfseg {
namespace cpu {

namespace {

struct Depthwise {
    int64_t N, C, H, W;
    Taps taps;

    Depthwise(const Array& x, const Array& w, const Options& options)
        : N(x.shape[0]), C(x.shape[1]), H(x.shape[2]), W(x.shape[3]),
          taps{w.shape[2], w.shape[3], int64_t(options.at("dilation0")), int64_t(options.at("dilation1"))} {}
};

void convolve(const Depthwise& d, const float* x, const float* w, const float* bias, bool flipped, float* y) {
    const int64_t count = d.taps.h * d.taps.w, L = d.H * d.W;
    with_taps(d.taps, [&](auto h, auto w_) {
        constexpr int KH = decltype(h)::value, KW = decltype(w_)::value;
        #pragma omp parallel
        {
            Padded padded(d.H, d.W, d.taps);
            std::vector<float> weights(count);
            #pragma omp for
            for (int64_t p = 0; p < d.N * d.C; p++) {
                const int64_t c = p % d.C;
                for (int64_t i = 0; i < count; i++) weights[i] = w[c * count + (flipped ? count - 1 - i : i)];
                padded.fill(x + p * L);
                convolve_by<KH, KW>(padded, d.taps, weights.data(), bias ? bias[c] : 0.0f, y + p * L);
            }
        }
    });
}

void correlate(const Depthwise& d, const float* upstream, const float* x, float* w_gradient, float* bias_gradient) {
    const int64_t count = d.taps.h * d.taps.w, L = d.H * d.W;
    with_taps(d.taps, [&](auto h, auto w) {
        constexpr int KH = decltype(h)::value, KW = decltype(w)::value;
        #pragma omp parallel
        {
            Padded padded(d.H, d.W, d.taps), given(d.H, d.W, d.taps);
            #pragma omp for
            for (int64_t c = 0; c < d.C; c++) {
                float* to = w_gradient + c * count;
                std::fill(to, to + count, 0.0f);
                double sum = 0;
                for (int64_t n = 0; n < d.N; n++) {
                    const int64_t at = (n * d.C + c) * L;
                    padded.fill(x + at);
                    given.fill(upstream + at);
                    correlate_by<KH, KW>(padded, given, d.taps, to);
                    float s = 0;
                    #pragma omp simd reduction(+:s)
                    for (int64_t i = 0; i < L; i++) s += upstream[at + i];
                    sum += s;
                }
                bias_gradient[c] = sum;
            }
        }
    });
}

}  // namespace

// In: x, w and, optionally, bias. Out: y. Options: dilation0, dilation1, bias.
void depthwise_forward(const Array* in, const Array* out, const Options& options) {
    const float* bias = options.at("bias") ? floats(in[2]) : nullptr;
    convolve({in[0], in[1], options}, floats(in[0]), floats(in[1]), bias, false, floats(out[0]));
}

// In: upstream, w. Out: the gradient of x. Options: dilation0, dilation1.
void depthwise_gradient_x(const Array* in, const Array* out, const Options& options) {
    convolve({in[0], in[1], options}, floats(in[0]), floats(in[1]), nullptr, true, floats(out[0]));
}

// In: upstream, x. Out: the gradients of w and of a bias. Options: dilation0, dilation1.
void depthwise_gradient_w(const Array* in, const Array* out, const Options& options) {
    correlate({in[1], out[0], options}, floats(in[0]), floats(in[1]), floats(out[0]), floats(out[1]));
}

}  // namespace cpu
}  // namespace pfseg
