// GELU, and sums of maps of which one is scaled, on a CPU.

#include <algorithm>
#include <cmath>

#include "functions.h"

namespace pfseg {
namespace cpu {

namespace {

// The normal distribution function at x minus 1/2, to 3e-7: x * P(x²) / Q(x²), a minimax fit on [-5.6, 5.6].
inline float normal(float x) {
    x = std::max(-5.6f, std::min(5.6f, x));
    const float t = x * x;
    float p = 2.2145082994839148e-08f, q = 1.1802039576140008e-06f;
    p = p * t + 6.356515812224036e-06f;
    p = p * t + 1.738517871651504e-04f;
    p = p * t + 4.7072658941441975e-03f;
    p = p * t + 3.437623718403719e-02f;
    p = p * t + 3.989422215634543e-01f;
    q = q * t + 7.510213126001306e-05f;
    q = q * t + 1.912984464518268e-03f;
    q = q * t + 2.8940158287556052e-02f;
    q = q * t + 2.5283416119816376e-01f;
    q = q * t + 1.0f;
    return x * p / q;
}

constexpr float DENSITY = 0.3989422804014327f;  // of the normal distribution at 0

}  // namespace

// In: x. Out: x times the normal distribution function of x.
void elementwise_gelu(const Array* in, const Array* out, const Options&) {
    const float* x = floats(in[0]);
    float* y = floats(out[0]);
    #pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < in[0].size(); i++) y[i] = x[i] * (0.5f + normal(x[i]));
}

// In: x, upstream. Out: the gradient of x.
void elementwise_gelu_gradient(const Array* in, const Array* out, const Options&) {
    const float *x = floats(in[0]), *upstream = floats(in[1]);
    float* gradient = floats(out[0]);
    #pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < in[0].size(); i++) {
        const float density = DENSITY * std::exp(-0.5f * x[i] * x[i]);
        gradient[i] = upstream[i] * (0.5f + normal(x[i]) + x[i] * density);
    }
}

// In: x, y (N, C, H, W), scale (N, C). Out: x + scale * y.
void elementwise_scaled_add(const Array* in, const Array* out, const Options&) {
    const int64_t planes = in[2].size(), L = in[0].shape[2] * in[0].shape[3];
    const float *x = floats(in[0]), *y = floats(in[1]), *scales = floats(in[2]);
    float* sum = floats(out[0]);
    #pragma omp parallel for
    for (int64_t p = 0; p < planes; p++) {
        const float scale = scales[p];
        #pragma omp simd
        for (int64_t i = p * L; i < (p + 1) * L; i++) sum[i] = x[i] + scale * y[i];
    }
}

// In: upstream, y, scale. Out: the gradients of y and of scale.
void elementwise_scaled_add_gradient(const Array* in, const Array* out, const Options&) {
    const int64_t planes = in[2].size(), L = in[0].shape[2] * in[0].shape[3];
    const float *upstream = floats(in[0]), *y = floats(in[1]), *scales = floats(in[2]);
    float *y_gradient = floats(out[0]), *scale_gradient = floats(out[1]);
    #pragma omp parallel for
    for (int64_t p = 0; p < planes; p++) {
        const float scale = scales[p];
        float sum = 0;
        #pragma omp simd reduction(+:sum)
        for (int64_t i = p * L; i < (p + 1) * L; i++) {
            y_gradient[i] = scale * upstream[i];
            sum += y[i] * upstream[i];
        }
        scale_gradient[p] = sum;
    }
}

}  // namespace cpu
}  // namespace pfseg
