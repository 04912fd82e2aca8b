// Batch normalisation on a CPU.
//
// x, y, upstream and gradient are (N, C, L), L = H * W; everything else is per channel, (C,).
// Within a plane of L values sums are taken in float32, which vectorises; over planes in double.
//
//   y = (x - mean) * scale + bias, with scale = weight / deviation, and max(0, y) where `relu` is set.

#include "functions.h"

namespace pfseg {
namespace cpu {

namespace {

// Mean and biased variance, the latter around the mean in a second pass.
void moments(int64_t N, int64_t C, int64_t L, const float* x, float* mean_out, float* variance_out) {
    #pragma omp parallel for
    for (int64_t c = 0; c < C; c++) {
        double total = 0;
        for (int64_t n = 0; n < N; n++) {
            const float* plane = x + (n * C + c) * L;
            float s = 0;
            #pragma omp simd reduction(+:s)
            for (int64_t i = 0; i < L; i++) s += plane[i];
            total += s;
        }
        const float mean = total / (N * L);
        double square = 0;
        for (int64_t n = 0; n < N; n++) {
            const float* plane = x + (n * C + c) * L;
            float s = 0;
            #pragma omp simd reduction(+:s)
            for (int64_t i = 0; i < L; i++) { const float d = plane[i] - mean; s += d * d; }
            square += s;
        }
        mean_out[c] = mean;
        variance_out[c] = square / (N * L);
    }
}

template <bool relu>
void normalise(int64_t N, int64_t C, int64_t L, const float* x, const float* means, const float* scales,
               const float* biases, float* y) {
    #pragma omp parallel for collapse(2)
    for (int64_t n = 0; n < N; n++)
        for (int64_t c = 0; c < C; c++) {
            const float* from = x + (n * C + c) * L;
            float* to = y + (n * C + c) * L;
            const float mean = means[c], scale = scales[c], bias = biases[c];
            #pragma omp simd
            for (int64_t i = 0; i < L; i++) {
                const float v = (from[i] - mean) * scale + bias;
                to[i] = relu ? (v > 0 ? v : 0) : v;
            }
        }
}

// Per channel the sums of g and of g * (x - mean), where g = upstream, and 0 where the ReLU cut off.
template <bool relu>
void gradient_sums(int64_t N, int64_t C, int64_t L, const float* x, const float* upstream, const float* means,
                   const float* scales, const float* biases, float* sums, float* products) {
    #pragma omp parallel for
    for (int64_t c = 0; c < C; c++) {
        const float mean = means[c], scale = scales[c], bias = biases[c];
        double sum = 0, product = 0;
        for (int64_t n = 0; n < N; n++) {
            const float* plane = x + (n * C + c) * L;
            const float* u = upstream + (n * C + c) * L;
            float s = 0, p = 0;
            #pragma omp simd reduction(+:s,p)
            for (int64_t i = 0; i < L; i++) {
                const float d = plane[i] - mean;
                const float v = d * scale + bias;
                const float g = relu ? (v > 0 ? u[i] : 0) : u[i];
                s += g;
                p += g * d;
            }
            sum += s;
            product += p;
        }
        sums[c] = sum;
        products[c] = product;
    }
}

// Gradient of x: scale * (g - a - (x - mean) * b) with g as above, and a and b per channel.
template <bool relu>
void gradient(int64_t N, int64_t C, int64_t L, const float* x, const float* upstream, const float* means,
              const float* scales, const float* biases, const float* as, const float* bs, float* out) {
    #pragma omp parallel for collapse(2)
    for (int64_t n = 0; n < N; n++)
        for (int64_t c = 0; c < C; c++) {
            const float* plane = x + (n * C + c) * L;
            const float* u = upstream + (n * C + c) * L;
            float* to = out + (n * C + c) * L;
            const float mean = means[c], scale = scales[c], bias = biases[c], a = as[c], b = bs[c];
            #pragma omp simd
            for (int64_t i = 0; i < L; i++) {
                const float d = plane[i] - mean;
                const float v = d * scale + bias;
                const float g = relu ? (v > 0 ? u[i] : 0) : u[i];
                to[i] = scale * (g - a - d * b);
            }
        }
}

struct Sizes {
    int64_t N, C, L;

    explicit Sizes(const Array& x) : N(x.shape[0]), C(x.shape[1]), L(x.shape[2] * x.shape[3]) {}
};

}  // namespace

// In: x. Out: mean, variance.
void batchnorm_moments(const Array* in, const Array* out, const Options&) {
    const Sizes s(in[0]);
    moments(s.N, s.C, s.L, floats(in[0]), floats(out[0]), floats(out[1]));
}

// In: x, mean, scale, bias. Out: y. Options: relu.
void batchnorm_normalise(const Array* in, const Array* out, const Options& options) {
    const Sizes s(in[0]);
    const auto work = options.at("relu") ? normalise<true> : normalise<false>;
    work(s.N, s.C, s.L, floats(in[0]), floats(in[1]), floats(in[2]), floats(in[3]), floats(out[0]));
}

// In: x, upstream, mean, scale, bias. Out: the sums of g and of g * (x - mean). Options: relu.
void batchnorm_gradient_sums(const Array* in, const Array* out, const Options& options) {
    const Sizes s(in[0]);
    const auto work = options.at("relu") ? gradient_sums<true> : gradient_sums<false>;
    work(s.N, s.C, s.L, floats(in[0]), floats(in[1]), floats(in[2]), floats(in[3]), floats(in[4]), floats(out[0]),
         floats(out[1]));
}

// In: x, upstream, mean, scale, bias, a, b. Out: the gradient of x. Options: relu.
void batchnorm_gradient(const Array* in, const Array* out, const Options& options) {
    const Sizes s(in[0]);
    const auto work = options.at("relu") ? gradient<true> : gradient<false>;
    work(s.N, s.C, s.L, floats(in[0]), floats(in[1]), floats(in[2]), floats(in[3]), floats(in[4]), floats(in[5]),
         floats(in[6]), floats(out[0]));
}

}  // namespace cpu
}  // namespace pfseg
