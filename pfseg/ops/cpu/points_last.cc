// Flow of points from a coarse map to a fine one on a CPU (`pfseg.ops.points.flow_points`), maps being (N, H, W, C).
//
// An image's P points are the boundary points, then the salient ones; their features are float32 (P, C). What is read or
// written at a cell of a map is an entry with a weight, in the order of
//     P targets        fine cells that the points are written to; from here the salient points come
//     4 * boundary     fine cells that a boundary point is sampled from
//     P sources        coarse cells of the points

#include <dnnl.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "values.h"

namespace pfseg {
namespace cpu {

namespace {

struct Size {
    int64_t coarse_height, coarse_width, height, width, C, boundary, salient, points, entries, widest;

    Size(const Array& coarse, const Array& fine, const Options& options)
        : coarse_height(coarse.shape[1]), coarse_width(coarse.shape[2]), height(fine.shape[1]), width(fine.shape[2]),
          C(fine.shape[3]), boundary(options.at("boundary")), salient(options.at("salient")),
          points(boundary + salient), entries(2 * points + 4 * boundary), widest(std::max(boundary, salient)) {}

    int64_t coarse_cells() const { return coarse_height * coarse_width; }
    int64_t cells() const { return height * width; }
};

// Runs work(first point, number of points) for each of the two kinds.
template <class Work> void branches(const Size& s, Work work) {
    if (s.boundary) work(int64_t(0), s.boundary);
    if (s.salient) work(s.boundary, s.salient);
}

// out (P, R) = a (P, Q) times b (Q, R), added to it where said; a or b may be stored with its axes swapped.
void multiply(int64_t P, int64_t Q, int64_t R, const float* a, int64_t a_step, bool a_swapped, const float* b,
              int64_t b_step, bool b_swapped, float* out, int64_t step, bool add = false) {
    dnnl_sgemm(a_swapped ? 'T' : 'N', b_swapped ? 'T' : 'N', P, R, Q, 1.0f, a, a_step, b, b_step, add ? 1.0f : 0.0f, out,
               step);
}

// The neighbours of a centre of `count` cells on an axis of `size`, as in `pfseg.ops.points.sample_points`.
void neighbours(int64_t cell, int64_t count, int64_t size, int64_t* index, float* weight) {
    const int64_t position = (2 * cell + 1) * size - count;  // in units of 1 / (2 * count)
    const int64_t low = position < 0 ? -1 : position / (2 * count);
    const float part = float(position - low * 2 * count) / (2 * count);
    for (int i = 0; i < 2; i++) {
        const bool inside = low + i >= 0 && low + i < size;
        index[i] = std::max<int64_t>(0, std::min(low + i, size - 1));
        weight[i] = !inside ? 0.0f : i ? part : 1.0f - part;
    }
}

// Entries of an image, by the coarse cells of its points.
void find_entries(const Size& s, const int32_t* boundary, const int32_t* salient, const float* factor, int32_t* cells,
                  float* weights) {
    for (int64_t p = 0; p < s.points; p++) {
        const bool sampled = p < s.boundary;
        const int64_t source = sampled ? boundary[p] : salient[p - s.boundary];
        const int64_t row = source / s.coarse_width, column = source % s.coarse_width;
        cells[p] = row * s.height / s.coarse_height * s.width + column * s.width / s.coarse_width;
        weights[p] = sampled ? 0.0f : 1.0f;
        cells[s.entries - s.points + p] = source;
        weights[s.entries - s.points + p] = sampled ? 1.0f : 1.0f + factor[source];
        if (!sampled) continue;
        int64_t y[2], x[2];
        float y_weight[2], x_weight[2];
        neighbours(row, s.coarse_height, s.height, y, y_weight);
        neighbours(column, s.coarse_width, s.width, x, x_weight);
        for (int i = 0; i < 4; i++) {
            cells[s.points + 4 * p + i] = y[i / 2] * s.width + x[i % 2];
            weights[s.points + 4 * p + i] = y_weight[i / 2] * x_weight[i % 2];
        }
    }
}

template <class T> void add_row(int64_t C, float weight, const T* from, float* to) {
    for (int64_t c = 0; c < C; c++) to[c] += weight * to_float(from[c]);
}

// Features of an image's points in both maps.
template <class T>
void gather(const Size& s, const T* coarse, const T* fine, const int32_t* cells, const float* weights,
            float* coarse_points, float* fine_points) {
    for (int64_t p = 0; p < s.points; p++) {
        const int64_t source = s.entries - s.points + p;
        add_row(s.C, weights[source], coarse + cells[source] * s.C, coarse_points + p * s.C);
        if (p >= s.boundary) add_row(s.C, 1.0f, fine + cells[p] * s.C, fine_points + p * s.C);
        else
            for (int64_t e = s.points + 4 * p; e < s.points + 4 * p + 4; e++)
                add_row(s.C, weights[e], fine + cells[e] * s.C, fine_points + p * s.C);
    }
}

void softmax(int64_t count, float* row) {
    const float largest = *std::max_element(row, row + count);
    float sum = 0;
    for (int64_t i = 0; i < count; i++) sum += row[i] = std::exp(row[i] - largest);
    for (int64_t i = 0; i < count; i++) row[i] /= sum;
}

// Fused features of an image's points, written over its fine map; the last of equal cells wins.
template <class T>
void flow(const Size& s, const float* coarse, const float* fine, const int32_t* cells, float* affinity, T* out) {
    std::vector<float> fused(fine, fine + s.points * s.C);
    branches(s, [&](int64_t first, int64_t count) {
        float* scores = affinity + first * s.widest;
        multiply(count, s.C, count, fine + first * s.C, s.C, false, coarse + first * s.C, s.C, true, scores, s.widest);
        for (int64_t p = 0; p < count; p++) softmax(count, scores + p * s.widest);
        multiply(count, count, s.C, scores, s.widest, false, coarse + first * s.C, s.C, false,
                 fused.data() + first * s.C, s.C, true);
    });
    for (int64_t p = 0; p < s.points; p++)
        for (int64_t c = 0; c < s.C; c++) out[cells[p] * s.C + c] = from_float<T>(fused[p * s.C + c]);
}

// What an image's points take in the backward pass: gradients of their features in both maps.
template <class T>
void point_gradients(const Size& s, const T* upstream, const float* coarse, const float* fine, const float* affinity,
                     const int32_t* cells, float* coarse_gradient, float* fine_gradient) {
    std::vector<float> scores(s.widest * s.widest);
    for (int64_t p = 0; p < s.points; p++) {  // a boundary point under a salient one gets nothing
        const int32_t* end = cells + s.points;
        if (p < s.boundary && std::find(cells + s.boundary, end, cells[p]) != end) continue;
        add_row(s.C, 1.0f, upstream + cells[p] * s.C, fine_gradient + p * s.C);
    }
    branches(s, [&](int64_t first, int64_t count) {
        const float* weights = affinity + first * s.widest;
        const float *own = coarse + first * s.C, *others = fine + first * s.C;
        float *to_coarse = coarse_gradient + first * s.C, *to_fine = fine_gradient + first * s.C;
        multiply(count, s.C, count, to_fine, s.C, false, own, s.C, true, scores.data(), count);
        multiply(count, count, s.C, weights, s.widest, true, to_fine, s.C, false, to_coarse, s.C);
        for (int64_t p = 0; p < count; p++) {
            float *row = scores.data() + p * count, sum = 0;
            for (int64_t q = 0; q < count; q++) sum += weights[p * s.widest + q] * row[q];
            for (int64_t q = 0; q < count; q++) row[q] = weights[p * s.widest + q] * (row[q] - sum);
        }
        multiply(count, count, s.C, scores.data(), count, true, others, s.C, false, to_coarse, s.C, true);
        multiply(count, count, s.C, scores.data(), count, false, own, s.C, false, to_fine, s.C, true);
    });
}

// Sums of the entries' gradients for each cell, in float32 also where maps aren't.
using Sums = std::map<int32_t, std::vector<float>>;

template <class T> void store(const Sums& sums, int64_t C, T* map) {
    for (const auto& [cell, values] : sums)
        for (int64_t c = 0; c < C; c++) map[cell * C + c] = from_float<T>(values[c]);
}

// From gradients of an image's points to those of its maps; `to_fine` holds the upstream gradient.
template <class T>
void spread(const Size& s, const int32_t* cells, const float* weights, const float* coarse_gradient,
            const float* fine_gradient, const T* coarse, T* to_fine, T* to_coarse, float* to_factor) {
    Sums in_fine, in_coarse;
    for (int64_t p = 0; p < s.points; p++) in_fine[cells[p]].assign(s.C, 0.0f);  // they were written over
    for (int64_t p = s.boundary; p < s.points; p++) add_row(s.C, 1.0f, fine_gradient + p * s.C, in_fine[cells[p]].data());
    for (int64_t e = s.points; e < s.points + 4 * s.boundary; e++) {
        std::vector<float>& sum = in_fine[cells[e]];
        if (sum.empty()) sum.assign(s.C, 0.0f), add_row(s.C, 1.0f, to_fine + cells[e] * s.C, sum.data());
        add_row(s.C, weights[e], fine_gradient + (e - s.points) / 4 * s.C, sum.data());
    }
    for (int64_t p = 0; p < s.points; p++) {
        const int64_t e = s.entries - s.points + p;
        const float* gradient = coarse_gradient + p * s.C;
        std::vector<float>& sum = in_coarse[cells[e]];
        sum.resize(s.C);
        add_row(s.C, weights[e], gradient, sum.data());
        if (p >= s.boundary)
            for (int64_t c = 0; c < s.C; c++) to_factor[cells[e]] += gradient[c] * to_float(coarse[cells[e] * s.C + c]);
    }
    store(in_fine, s.C, to_fine);
    store(in_coarse, s.C, to_coarse);
}

}  // namespace

// coarse map, fine map, [boundary points (N, P)], [salient points, factor (N, 1, H, W) float32] -> fine map with the
// points; for the gradient: coarse and fine points (N, P, C), affinity, cells, weights, and two more that stay unused
void last_points_flow(const Array* in, const Array* out, const Options& options) {
    const Size s(in[0], in[1], options);
    const Array* more = in + 2;
    const int32_t* boundary = s.boundary ? integers(*more++) : nullptr;
    const int32_t* salient = s.salient ? integers(*more++) : nullptr;
    const float* factor = s.salient ? floats(*more) : nullptr;
    std::memset(out[1].data, 0, out[1].size() * sizeof(float));
    std::memset(out[2].data, 0, out[2].size() * sizeof(float));
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        std::copy(as<T>(in[1]), as<T>(in[1]) + in[1].size(), as<T>(out[0]));
        for (int64_t n = 0; n < in[0].shape[0]; n++) {
            int32_t* cells = integers(out[4]) + n * s.entries;
            float* weights = floats(out[5]) + n * s.entries;
            float *coarse = floats(out[1]) + n * s.points * s.C, *fine = floats(out[2]) + n * s.points * s.C;
            find_entries(s, boundary + n * s.boundary, salient + n * s.salient,
                         factor + (factor ? n * s.coarse_cells() : 0), cells, weights);
            gather(s, as<T>(in[0]) + n * s.coarse_cells() * s.C, as<T>(in[1]) + n * s.cells() * s.C, cells, weights,
                   coarse, fine);
            flow(s, coarse, fine, cells, floats(out[3]) + n * s.points * s.widest, as<T>(out[0]) + n * s.cells() * s.C);
        }
    });
}

// upstream, coarse map, what `last_points_flow` gives for it -> gradients of the coarse map, the fine map and [the factor];
// scratch: one that stays unused, gradients of coarse points and of fine points (N, P, C), and one more
void last_points_flow_gradient(const Array* in, const Array* out, const Options& options) {
    const Size s(in[1], in[0], options);
    const Array* scratch = out + (s.salient ? 3 : 2);
    for (const Array* array : {scratch + 1, scratch + 2}) std::memset(array->data, 0, array->size() * sizeof(float));
    if (s.salient) std::memset(out[2].data, 0, out[2].size() * sizeof(float));
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        std::memset(out[0].data, 0, out[0].size() * sizeof(T));
        std::copy(as<T>(in[0]), as<T>(in[0]) + in[0].size(), as<T>(out[1]));
        for (int64_t n = 0; n < in[0].shape[0]; n++) {
            const int64_t features = n * s.points * s.C, coarse = n * s.coarse_cells();
            const int32_t* cells = integers(in[5]) + n * s.entries;
            float *coarse_gradient = floats(scratch[1]) + features, *fine_gradient = floats(scratch[2]) + features;
            point_gradients(s, as<T>(in[0]) + n * s.cells() * s.C, floats(in[2]) + features, floats(in[3]) + features,
                            floats(in[4]) + n * s.points * s.widest, cells, coarse_gradient, fine_gradient);
            spread(s, cells, floats(in[6]) + n * s.entries, coarse_gradient, fine_gradient,
                   as<T>(in[1]) + coarse * s.C, as<T>(out[1]) + n * s.cells() * s.C, as<T>(out[0]) + coarse * s.C,
                   s.salient ? floats(out[2]) + coarse : nullptr);
        }
    });
}

}  // namespace cpu
}  // namespace pfseg
