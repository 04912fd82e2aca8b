// Bilinear samples of maps at any places on a CPU, and their gradients.
//
// x is (N, C, H, W), places (N, P, 2) hold column and row in pixels, from 0 at the centre of the first; y is (N, C, P).
// Outside of the map there are zeros.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "functions.h"

namespace pfseg {
namespace cpu {

namespace {

// The four pixels around a place: where they are in the plane, 0 if outside, and whether they are inside.
struct Corners {
    int32_t at[4];
    float inside[4], right, down;  // shares of the right and the lower pixels

    Corners(const float* place, int64_t H, int64_t W) {
        // far outside, so that the numbers stay integers
        const float column = std::fmin(std::fmax(place[0], -2.0f), W + 1.0f);
        const float row = std::fmin(std::fmax(place[1], -2.0f), H + 1.0f);
        const int64_t left = int64_t(std::floor(column)), top = int64_t(std::floor(row));
        right = column - left, down = row - top;
        for (int k = 0; k < 4; k++) {
            const int64_t i = top + k / 2, j = left + k % 2;
            inside[k] = i >= 0 && i < H && j >= 0 && j < W;
            at[k] = inside[k] ? int32_t(i * W + j) : 0;
        }
    }
    float weight(int k) const { return inside[k] * (k % 2 ? right : 1 - right) * (k / 2 ? down : 1 - down); }
};

// What samples take: `at` and `weights` are (4, N, P).
struct Taps {
    std::vector<int32_t> at;
    std::vector<float> weights;

    Taps(int64_t count, const float* places, int64_t H, int64_t W) : at(4 * count), weights(4 * count) {
        #pragma omp parallel for
        for (int64_t p = 0; p < count; p++) {
            const Corners corners(places + 2 * p, H, W);
            for (int k = 0; k < 4; k++) at[k * count + p] = corners.at[k], weights[k * count + p] = corners.weight(k);
        }
    }
};

}  // namespace

// In: x, places. Out: y.
void sampling_forward(const Array* in, const Array* out, const Options&) {
    const int64_t N = in[0].shape[0], C = in[0].shape[1], H = in[0].shape[2], W = in[0].shape[3], P = in[1].shape[1];
    const Taps taps(N * P, floats(in[1]), H, W);
    const float* x = floats(in[0]);
    float* y = floats(out[0]);
    #pragma omp parallel for collapse(2)
    for (int64_t n = 0; n < N; n++)
        for (int64_t c = 0; c < C; c++) {
            const float* plane = x + (n * C + c) * H * W;
            const int32_t* at = taps.at.data() + n * P;
            const float* weights = taps.weights.data() + n * P;
            float* to = y + (n * C + c) * P;
            #pragma omp simd
            for (int64_t p = 0; p < P; p++) {
                float sum = 0;
                for (int k = 0; k < 4; k++) sum += weights[k * N * P + p] * plane[at[k * N * P + p]];
                to[p] = sum;
            }
        }
}

// In: upstream, places. Out: gradient of x.
void sampling_gradient_x(const Array* in, const Array* out, const Options&) {
    const int64_t N = out[0].shape[0], C = out[0].shape[1], H = out[0].shape[2], W = out[0].shape[3], P = in[1].shape[1];
    const Taps taps(N * P, floats(in[1]), H, W);
    const float* upstream = floats(in[0]);
    float* gradient = floats(out[0]);
    #pragma omp parallel for collapse(2)
    for (int64_t n = 0; n < N; n++)
        for (int64_t c = 0; c < C; c++) {
            float* plane = gradient + (n * C + c) * H * W;
            const float* from = upstream + (n * C + c) * P;
            for (int64_t i = 0; i < H * W; i++) plane[i] = 0;
            for (int64_t p = 0; p < P; p++)
                for (int k = 0; k < 4; k++) {
                    const int64_t tap = (k * N + n) * P + p;
                    plane[taps.at[tap]] += taps.weights[tap] * from[p];
                }
        }
}

// In: upstream, x, places. Out: gradient of the places, within the cells that they lie in.
void sampling_gradient_places(const Array* in, const Array* out, const Options&) {
    const int64_t N = in[1].shape[0], C = in[1].shape[1], H = in[1].shape[2], W = in[1].shape[3], P = in[2].shape[1];
    const float* upstream = floats(in[0]);
    const float* x = floats(in[1]);
    const float* places = floats(in[2]);
    float* gradient = floats(out[0]);
    const int64_t BLOCK = 256;
    #pragma omp parallel for collapse(2)
    for (int64_t n = 0; n < N; n++)
        for (int64_t start = 0; start < P; start += BLOCK) {
            const int64_t end = std::min(P, start + BLOCK);
            std::vector<Corners> corners;
            std::vector<float> columns(BLOCK), rows(BLOCK);
            for (int64_t p = start; p < end; p++) corners.emplace_back(places + (n * P + p) * 2, H, W);
            for (int64_t c = 0; c < C; c++) {
                const float* plane = x + (n * C + c) * H * W;
                const float* from = upstream + (n * C + c) * P;
                for (int64_t p = start; p < end; p++) {
                    const Corners& corner = corners[p - start];
                    float v[4];
                    for (int k = 0; k < 4; k++) v[k] = corner.inside[k] * plane[corner.at[k]];
                    const float right = corner.right, down = corner.down;
                    columns[p - start] += from[p] * ((v[1] - v[0]) * (1 - down) + (v[3] - v[2]) * down);
                    rows[p - start] += from[p] * ((v[2] - v[0]) * (1 - right) + (v[3] - v[1]) * right);
                }
            }
            for (int64_t p = start; p < end; p++) {
                gradient[(n * P + p) * 2] = columns[p - start];
                gradient[(n * P + p) * 2 + 1] = rows[p - start];
            }
        }
}

}  // namespace cpu
}  // namespace pfseg
