// Separable linear resampling on a CPU: resizing, average pooling, and the gradients of both.
//
// A matrix whose rows are 0 outside a short range is held as `weights` (rows, k), row-major float32, and `starts` (rows,)
// int32: output cell i is the sum over j < k of weights[i, j] * input[starts[i] + j].

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {
namespace pfseg {

struct Band {
    int64_t rows, k;
    const float* weights;
    const int32_t* starts;
};

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

}  // namespace pfseg
}  // namespace
