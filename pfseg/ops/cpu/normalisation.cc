// Normalisation on a CPU over the channels of each position (layer) or over groups of channels of a sample (group).
//
// x, y, upstream and gradient are (N, C, H, W), L = H * W; weight and bias (C,).
//
//   y = (x - mean) * inverse * weight + bias, with inverse = 1 / sqrt(variance + eps), the variance being biased.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "functions.h"

namespace pfseg {
namespace cpu {

namespace {

// Positions (n, start to start + size) whose channels fit the second-level cache, with work for each thread.
struct Blocks {
    int64_t N, C, L, size, each, count;

    explicit Blocks(const Array& x) : N(x.shape[0]), C(x.shape[1]), L(x.shape[2] * x.shape[3]) {
        const int64_t share = (N * L + omp_get_max_threads() - 1) / omp_get_max_threads();
        size = std::min(std::max<int64_t>(65536 / C, 64), (share + 15) / 16 * 16);
        each = (L + size - 1) / size;
        count = N * each;
    }
};

void layer(const Blocks& b, const float* x, const float* weight, const float* bias, float eps, float* y, float* means,
           float* inverses) {
    const int64_t L = b.L;
    #pragma omp parallel for
    for (int64_t block = 0; block < b.count; block++) {
        const int64_t n = block / b.each, start = block % b.each * b.size, size = std::min(b.size, L - start);
        const float* from = x + n * b.C * L + start;
        float *to = y + n * b.C * L + start, *mean = means + n * L + start, *inverse = inverses + n * L + start;
        std::fill(mean, mean + size, 0.0f);
        std::fill(inverse, inverse + size, 0.0f);
        for (int64_t c = 0; c < b.C; c++) {
            #pragma omp simd
            for (int64_t i = 0; i < size; i++) mean[i] += from[c * L + i];
        }
        for (int64_t i = 0; i < size; i++) mean[i] /= b.C;
        for (int64_t c = 0; c < b.C; c++) {
            #pragma omp simd
            for (int64_t i = 0; i < size; i++) { const float d = from[c * L + i] - mean[i]; inverse[i] += d * d; }
        }
        for (int64_t i = 0; i < size; i++) inverse[i] = 1.0f / std::sqrt(inverse[i] / b.C + eps);
        for (int64_t c = 0; c < b.C; c++) {
            const float w = weight[c], shift = bias[c];
            #pragma omp simd
            for (int64_t i = 0; i < size; i++) to[c * L + i] = (from[c * L + i] - mean[i]) * inverse[i] * w + shift;
        }
    }
}

// Gradient of x: inverse * (g - mean of g - d * mean of (g * d)), with g = upstream * weight, d = (x - mean) * inverse.
void layer_gradient(const Blocks& b, const float* x, const float* upstream, const float* weight, const float* means,
                    const float* inverses, float* gradient, float* weight_gradient, float* bias_gradient) {
    const int64_t L = b.L;
    std::vector<float> sums(b.count * 2 * b.C);  // of each block, so that the order of the sums is fixed
    #pragma omp parallel
    {
        std::vector<float> average(b.size), product(b.size);
        #pragma omp for
        for (int64_t block = 0; block < b.count; block++) {
            const int64_t n = block / b.each, start = block % b.each * b.size, size = std::min(b.size, L - start);
            const int64_t offset = n * b.C * L + start;
            const float *from = x + offset, *u = upstream + offset;
            const float *mean = means + n * L + start, *inverse = inverses + n * L + start;
            float *to = gradient + offset, *own = sums.data() + block * 2 * b.C;
            std::fill(average.begin(), average.end(), 0.0f);
            std::fill(product.begin(), product.end(), 0.0f);
            for (int64_t c = 0; c < b.C; c++) {
                const float w = weight[c];
                float s = 0, p = 0;
                #pragma omp simd reduction(+:s,p)
                for (int64_t i = 0; i < size; i++) {
                    const float g = u[c * L + i], gd = g * (from[c * L + i] - mean[i]) * inverse[i];
                    s += g;
                    p += gd;
                    average[i] += g * w;
                    product[i] += gd * w;
                }
                own[c] = s;
                own[b.C + c] = p;
            }
            for (int64_t i = 0; i < size; i++) average[i] /= b.C, product[i] /= b.C;
            for (int64_t c = 0; c < b.C; c++) {
                const float w = weight[c];
                #pragma omp simd
                for (int64_t i = 0; i < size; i++) {
                    const float d = (from[c * L + i] - mean[i]) * inverse[i];
                    to[c * L + i] = inverse[i] * (u[c * L + i] * w - average[i] - d * product[i]);
                }
            }
        }
    }
    for (int64_t c = 0; c < b.C; c++) {
        double s = 0, p = 0;
        for (int64_t block = 0; block < b.count; block++) {
            s += sums[block * 2 * b.C + c];
            p += sums[(block * 2 + 1) * b.C + c];
        }
        bias_gradient[c] = s;
        weight_gradient[c] = p;
    }
}

struct Groups {
    int64_t N, C, L, count, width;  // channels of a group

    Groups(const Array& x, const Array& means)
        : N(x.shape[0]), C(x.shape[1]), L(x.shape[2] * x.shape[3]), count(means.shape[1]), width(C / count) {}
};

template <bool relu>
void group(const Groups& s, const float* x, const float* weight, const float* bias, float eps, float* y, float* means,
           float* inverses) {
    #pragma omp parallel for
    for (int64_t g = 0; g < s.N * s.count; g++) {
        const int64_t first = g % s.count * s.width, size = s.width * s.L;
        const float* from = x + g * size;
        double total = 0, square = 0;
        for (int64_t c = 0; c < s.width; c++) {
            float sum = 0;
            #pragma omp simd reduction(+:sum)
            for (int64_t i = c * s.L; i < (c + 1) * s.L; i++) sum += from[i];
            total += sum;
        }
        const float mean = total / size;
        for (int64_t c = 0; c < s.width; c++) {
            float sum = 0;
            #pragma omp simd reduction(+:sum)
            for (int64_t i = c * s.L; i < (c + 1) * s.L; i++) { const float d = from[i] - mean; sum += d * d; }
            square += sum;
        }
        const float inverse = 1.0 / std::sqrt(square / size + eps);
        for (int64_t c = 0; c < s.width; c++) {
            const float scale = inverse * weight[first + c], shift = bias[first + c];
            float* to = y + g * size;
            #pragma omp simd
            for (int64_t i = c * s.L; i < (c + 1) * s.L; i++) {
                const float v = (from[i] - mean) * scale + shift;
                to[i] = relu ? (v > 0 ? v : 0) : v;
            }
        }
        means[g] = mean;
        inverses[g] = inverse;
    }
}

// With g = upstream, and 0 where the ReLU cut off: also the sums over a plane of g * (x - mean) * inverse, and of g.
template <bool relu>
void group_gradient(const Groups& s, const float* x, const float* upstream, const float* weight, const float* bias,
                    const float* means, const float* inverses, float* gradient, float* weight_sums, float* bias_sums) {
    #pragma omp parallel for
    for (int64_t g = 0; g < s.N * s.count; g++) {
        const int64_t first = g % s.count * s.width, size = s.width * s.L;
        const float *from = x + g * size, *u = upstream + g * size;
        const float mean = means[g], inverse = inverses[g];
        double average = 0, product = 0;
        const auto passed = [=](int64_t i, float w, float b) {
            return relu && (from[i] - mean) * inverse * w + b <= 0 ? 0.0f : u[i];
        };
        for (int64_t c = 0; c < s.width; c++) {
            const float w = weight[first + c], b = bias[first + c];
            float sum = 0, p = 0;
            #pragma omp simd reduction(+:sum,p)
            for (int64_t i = c * s.L; i < (c + 1) * s.L; i++) {
                const float v = passed(i, w, b);
                sum += v;
                p += v * (from[i] - mean) * inverse;
            }
            bias_sums[g * s.width + c] = sum;
            weight_sums[g * s.width + c] = p;
            average += double(sum) * w;
            product += double(p) * w;
        }
        const float a = average / size, d = product / size;
        float* to = gradient + g * size;
        for (int64_t c = 0; c < s.width; c++) {
            const float w = weight[first + c], b = bias[first + c];
            #pragma omp simd
            for (int64_t i = c * s.L; i < (c + 1) * s.L; i++)
                to[i] = inverse * (passed(i, w, b) * w - a - (from[i] - mean) * inverse * d);
        }
    }
}

}  // namespace

// In: x, weight, bias. Out: y, means and inverses (N, H, W). Options: eps.
void normalisation_layer(const Array* in, const Array* out, const Options& options) {
    layer(Blocks(in[0]), floats(in[0]), floats(in[1]), floats(in[2]), options.at("eps"), floats(out[0]), floats(out[1]),
          floats(out[2]));
}

// In: x, upstream, weight, means, inverses. Out: gradients of x, weight and bias.
void normalisation_layer_gradient(const Array* in, const Array* out, const Options&) {
    layer_gradient(Blocks(in[0]), floats(in[0]), floats(in[1]), floats(in[2]), floats(in[3]), floats(in[4]),
                   floats(out[0]), floats(out[1]), floats(out[2]));
}

// In: x, weight, bias. Out: y, means and inverses (N, groups). Options: eps, relu.
void normalisation_group(const Array* in, const Array* out, const Options& options) {
    const auto work = options.at("relu") ? group<true> : group<false>;
    work({in[0], out[1]}, floats(in[0]), floats(in[1]), floats(in[2]), options.at("eps"), floats(out[0]),
         floats(out[1]), floats(out[2]));
}

// In: x, upstream, weight, bias, means, inverses. Out: the gradient of x, and what each sample adds, (N, C), to those of
// weight and bias. Options: relu.
void normalisation_group_gradient(const Array* in, const Array* out, const Options& options) {
    const auto work = options.at("relu") ? group_gradient<true> : group_gradient<false>;
    work({in[0], in[4]}, floats(in[0]), floats(in[1]), floats(in[2]), floats(in[3]), floats(in[4]), floats(in[5]),
         floats(out[0]), floats(out[1]), floats(out[2]));
}

}  // namespace cpu
}  // namespace pfseg
