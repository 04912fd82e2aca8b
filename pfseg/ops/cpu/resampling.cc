// Separable linear resampling on a CPU: resizing, average pooling, and the gradients of both.

#include <algorithm>
#include <vector>

#include "band.h"

namespace pfseg {
namespace cpu {

namespace {

// Map `planes` maps x (H, W) to y (vertical.rows, horizontal.rows), each thread line by line.
void resample(int64_t planes, int64_t H, int64_t W, const float* x, Band vertical, Band horizontal, float* y) {
    const int64_t h = vertical.rows, hk = vertical.k, w = horizontal.rows, wk = horizontal.k;
    #pragma omp parallel
    {
        std::vector<float> line(W);  // the weighted sum of input lines
        #pragma omp for
        for (int64_t p = 0; p < planes; p++)
            for (int64_t i = 0; i < h; i++) {
                const float* from = x + (p * H + vertical.starts[i]) * W;
                std::fill(line.begin(), line.end(), 0.0f);
                for (int64_t k = 0; k < hk; k++) {
                    const float weight = vertical.weights[i * hk + k];
                    if (weight == 0) continue;
                    #pragma omp simd
                    for (int64_t j = 0; j < W; j++) line[j] += weight * from[k * W + j];
                }
                float* to = y + (p * h + i) * w;
                for (int64_t j = 0; j < w; j++) {
                    const float* part = line.data() + horizontal.starts[j];
                    const float* weight = horizontal.weights + j * wk;
                    float sum = 0;
                    for (int64_t k = 0; k < wk; k++) sum += weight[k] * part[k];
                    to[j] = sum;
                }
            }
    }
}

}  // namespace

// In: x (N, C, H, W), weights and starts for its rows, and for its columns. Out: y.
void resampling_separable(const Array* in, const Array* out, const Options&) {
    const int64_t* x = in[0].shape;
    resample(x[0] * x[1], x[2], x[3], floats(in[0]), {in[1], in[2]}, {in[3], in[4]}, floats(out[0]));
}

}  // namespace cpu
}  // namespace pfseg
