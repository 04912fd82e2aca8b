// Flow of points from a coarse map to a fine one (`pfseg.ops.points.flow_points`), and the choice of the points.
//
// An image's P points are the boundary points, then the salient ones; their features are float32 (P, C). All that is
// read or written at a cell of a map is an entry, in the order of
//     P targets        fine cells that the points are written to; from here the salient points come
//     4 * boundary     fine cells that a boundary point is sampled from
//     P sources        coarse cells of the points, as ~cell, so that they differ from the fine ones
// and the entries of a cell are linked, first to last. So one block gives a cell its whole gradient, in a fixed order.
#include "device.h"

namespace pfseg {
namespace {

constexpr int ROWS = 8, DEPTH = 32, THREADS = ROWS * DEPTH;

struct Size {
    int coarse_height, coarse_width, height, width, channels, boundary, salient;

    __host__ __device__ int points() const { return boundary + salient; }
    __host__ __device__ int sources() const { return points() + 4 * boundary; }  // the first source
    __host__ __device__ int entries() const { return sources() + points(); }
    __host__ __device__ int widest() const { return boundary > salient ? boundary : salient; }
    __host__ __device__ int64_t coarse_cells() const { return int64_t(coarse_height) * coarse_width; }
    __host__ __device__ int64_t cells() const { return int64_t(height) * width; }
    __device__ int point(int entry) const {
        return entry < points() ? entry : entry < sources() ? (entry - points()) / 4 : entry - sources();
    }
};

// The neighbours of a centre of `count` cells on an axis of `size`, as in `pfseg.ops.points.sample_points`.
__device__ void neighbours(int cell, int count, int size, int* index, float* weight) {
    const int64_t position = (2 * cell + 1) * int64_t(size) - count;  // in units of 1 / (2 * count)
    const int low = position < 0 ? -1 : static_cast<int>(position / (2 * count));
    const float part = static_cast<float>(position - int64_t(low) * 2 * count) / (2 * count);
    for (int i = 0; i < 2; i++) {
        const bool inside = low + i >= 0 && low + i < size;
        index[i] = max(0, min(low + i, size - 1));
        weight[i] = !inside ? 0.0f : i ? part : 1.0f - part;
    }
}

// A block per point: its entries, and its features in both maps.
template <class T>
__global__ void gather(Size s, const T* coarse, const T* fine, const int* boundary, const int* salient, const float* factor,
                       float* coarse_points, float* fine_points, int* cells, float* weights) {
    __shared__ int corner[4];
    __shared__ float share[4];
    const int p = blockIdx.x, n = blockIdx.y;
    const bool sampled = p < s.boundary;
    const int source = sampled ? boundary[n * s.boundary + p] : salient[n * s.salient + p - s.boundary];
    const int row = source / s.coarse_width, column = source % s.coarse_width;
    const int target = row * s.height / s.coarse_height * s.width + column * s.width / s.coarse_width;
    const float scale = sampled ? 1.0f : 1.0f + factor[n * s.coarse_cells() + source];
    if (threadIdx.x == 0) {
        int* cell = cells + int64_t(n) * s.entries();
        float* weight = weights + int64_t(n) * s.entries();
        cell[p] = target, weight[p] = sampled ? 0.0f : 1.0f;
        cell[s.sources() + p] = ~source, weight[s.sources() + p] = scale;
        if (sampled) {
            int y[2], x[2];
            float y_weight[2], x_weight[2];
            neighbours(row, s.coarse_height, s.height, y, y_weight);
            neighbours(column, s.coarse_width, s.width, x, x_weight);
            for (int i = 0; i < 4; i++) {
                corner[i] = y[i / 2] * s.width + x[i % 2], share[i] = y_weight[i / 2] * x_weight[i % 2];
                cell[s.points() + 4 * p + i] = corner[i], weight[s.points() + 4 * p + i] = share[i];
            }
        }
    }
    __syncthreads();
    coarse += (n * s.coarse_cells() + source) * s.channels, fine += n * s.cells() * s.channels;
    coarse_points += (int64_t(n) * s.points() + p) * s.channels, fine_points += (int64_t(n) * s.points() + p) * s.channels;
    for (int c = threadIdx.x; c < s.channels; c += blockDim.x) {
        coarse_points[c] = to_float(coarse[c]) * scale;
        float value = 0;
        if (!sampled) value = to_float(fine[int64_t(target) * s.channels + c]);
        else
            for (int i = 0; i < 4; i++) value += to_float(fine[int64_t(corner[i]) * s.channels + c]) * share[i];
        fine_points[c] = value;
    }
}

// The next entry of the same cell, or -1; and whether it is the cell's first.
__global__ void link(int entries, const int* cells, int* next, unsigned char* first) {
    const int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= entries) return;
    cells += int64_t(blockIdx.y) * entries;
    const int cell = cells[e];
    int before = 0, after = entries;
    for (int i = 0; i < entries; i++) {
        const bool same = cells[i] == cell;
        before |= same && i < e;
        after = same && i > e ? min(after, i) : after;
    }
    next[int64_t(blockIdx.y) * entries + e] = after < entries ? after : -1;
    first[int64_t(blockIdx.y) * entries + e] = !before;
}

template <class T, int N>
__global__ void copy(int64_t packs, const T* x, T* y) {
    for (int64_t p = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; p < packs; p += int64_t(gridDim.x) * blockDim.x)
        reinterpret_cast<Pack<T, N>*>(y)[p] = reinterpret_cast<const Pack<T, N>*>(x)[p];
}

void copy(const Array& x, const Array& y) {
    with_packs(x.type, x.shape[3], [&](auto zero, auto pack) {
        using T = decltype(zero);
        const int64_t packs = x.size() / pack;
        launch(copy<T, pack>, grid_of(packs), 256, 0, packs, as<T>(x), as<T>(y));
    });
}

// The points of one branch that a block computes.
struct Rows {
    int begin, count;  // the branch
    int first, rows;   // the block's part of it

    __device__ explicit Rows(const Size& s) {
        const int split = (s.boundary + ROWS - 1) / ROWS, block = blockIdx.x;
        begin = block < split ? 0 : s.boundary;
        count = block < split ? s.boundary : s.salient;
        first = begin + (block < split ? block : block - split) * ROWS;
        rows = min(ROWS, begin + count - first);
    }
};

dim3 row_grid(const Size& s, int64_t n) {
    return dim3(blocks(s.boundary, ROWS) + blocks(s.salient, ROWS), static_cast<unsigned>(n));
}

// store(r, j, sum over k of left[r * row_step + k * inner_step] * right(k, j)), right(k, j) being right[k * stride + j] or,
// TURNED, right[j * stride + k].
template <bool TURNED, class Store>
__device__ void multiply(int rows, int inner, int columns, const float* left, int64_t row_step, int64_t inner_step,
                         const float* right, int64_t stride, Store store) {
    __shared__ float part[DEPTH][ROWS];
    __shared__ float tile[TURNED ? THREADS : 1][DEPTH + 1];
    const int thread = threadIdx.x, lane = thread % DEPTH, line = thread / DEPTH;
    for (int start = 0; start < columns; start += THREADS) {
        const int column = start + thread;
        float sums[ROWS] = {};
        for (int from = 0; from < inner; from += DEPTH) {
            const int k = from + lane, depth = min(DEPTH, inner - from);
            __syncthreads();
            part[lane][line] = line < rows && k < inner ? left[line * row_step + k * inner_step] : 0.0f;
            if (TURNED)
                for (int j = line; j < THREADS && start + j < columns; j += ROWS)
                    tile[j][lane] = k < inner ? right[(start + j) * stride + k] : 0.0f;
            __syncthreads();
            if (column >= columns) continue;
#pragma unroll 8
            for (int i = 0; i < depth; i++) {
                const float value = TURNED ? tile[thread][i] : right[(from + i) * stride + column];
                for (int r = 0; r < ROWS; r++) sums[r] += part[i][r] * value;
            }
        }
        if (column < columns)
            for (int r = 0; r < ROWS; r++)
                if (r < rows) store(r, column, sums[r]);
    }
    __syncthreads();  // what `store` wrote is read next
}

// Sum or maximum over the threads of each row, DEPTH of them; all get it.
template <bool SUM>
__device__ float row_total(float value) {
    __shared__ float memory[ROWS][DEPTH];
    const int lane = threadIdx.x % DEPTH, row = threadIdx.x / DEPTH;
    memory[row][lane] = value;
    for (int step = DEPTH / 2; step > 0; step /= 2) {
        __syncthreads();
        if (lane < step) {
            const float other = memory[row][lane + step];
            memory[row][lane] = SUM ? memory[row][lane] + other : max(memory[row][lane], other);
        }
    }
    __syncthreads();
    const float total = memory[row][0];
    __syncthreads();
    return total;
}

// Fused features of a block's points, written over the fine map unless a later point is.
template <class T>
__global__ void flow(Size s, const float* coarse_points, const float* fine_points, const int* cells, const int* next,
                     float* affinity, T* out) {
    const Rows at(s);
    const int64_t n = blockIdx.y, features = n * s.points() * s.channels;
    const float* coarse = coarse_points + features + int64_t(at.begin) * s.channels;
    const float* fine = fine_points + features + int64_t(at.first) * s.channels;
    float* scores = affinity + (n * s.points() + at.first) * s.widest();
    const int* link = next + n * s.entries() + at.first;
    const int* cell = cells + n * s.entries() + at.first;
    multiply<true>(at.rows, s.channels, at.count, fine, s.channels, 1, coarse, s.channels,
                   [&](int r, int q, float score) { scores[int64_t(r) * s.widest() + q] = score; });

    const int lane = threadIdx.x % DEPTH, row = threadIdx.x / DEPTH, count = row < at.rows ? at.count : 0;
    float* own = scores + int64_t(row) * s.widest();
    float largest = -INFINITY, sum = 0;
    for (int q = lane; q < count; q += DEPTH) largest = max(largest, own[q]);
    largest = row_total<false>(largest);
    for (int q = lane; q < count; q += DEPTH) sum += own[q] = expf(own[q] - largest);
    sum = row_total<true>(sum);
    for (int q = lane; q < count; q += DEPTH) own[q] /= sum;
    __syncthreads();

    multiply<false>(at.rows, at.count, s.channels, scores, s.widest(), 1, coarse, s.channels, [&](int r, int c, float flowed) {
        const bool overwritten = link[r] >= 0 && link[r] < s.points();
        if (!overwritten)
            out[(n * s.cells() + cell[r]) * s.channels + c] = from_float<T>(flowed + fine[int64_t(r) * s.channels + c]);
    });
}

// Gradients of a block's fused points, of their scores (before the softmax), and of their features in the fine map.
template <class T>
__global__ void row_gradients(Size s, const float* coarse_points, const float* affinity, const int* cells, const int* next,
                              const T* upstream, float* fused_gradient, float* score_gradient, float* fine_gradient) {
    const Rows at(s);
    const int64_t n = blockIdx.y, rows = n * s.points() + at.first;
    const float* coarse = coarse_points + (n * s.points() + at.begin) * s.channels;
    float* fused = fused_gradient + rows * s.channels;
    float* scores = score_gradient + rows * s.widest();
    float* fine = fine_gradient + rows * s.channels;
    for (int r = 0; r < at.rows; r++) {
        // Points of one branch at one cell get its whole gradient each, but a boundary point under a salient one gets none.
        int later = at.first + r;
        while (later >= 0 && later < s.boundary) later = next[n * s.entries() + later];
        const bool erased = at.begin < s.boundary && later >= s.boundary && later < s.points();
        const T* from = upstream + (n * s.cells() + cells[n * s.entries() + at.first + r]) * s.channels;
        for (int c = threadIdx.x; c < s.channels; c += THREADS)
            fused[int64_t(r) * s.channels + c] = erased ? 0.0f : to_float(from[c]);
    }
    __syncthreads();
    multiply<true>(at.rows, s.channels, at.count, fused, s.channels, 1, coarse, s.channels,
                   [&](int r, int q, float value) { scores[int64_t(r) * s.widest() + q] = value; });

    const int lane = threadIdx.x % DEPTH, row = threadIdx.x / DEPTH, count = row < at.rows ? at.count : 0;
    float* own = scores + int64_t(row) * s.widest();
    const float* weights = affinity + (rows + row) * s.widest();
    float sum = 0;
    for (int q = lane; q < count; q += DEPTH) sum += weights[q] * own[q];
    sum = row_total<true>(sum);
    for (int q = lane; q < count; q += DEPTH) own[q] = weights[q] * (own[q] - sum);
    __syncthreads();

    multiply<false>(at.rows, at.count, s.channels, scores, s.widest(), 1, coarse, s.channels, [&](int r, int c, float value) {
        fine[int64_t(r) * s.channels + c] = value + fused[int64_t(r) * s.channels + c];
    });
}

// Gradients of a block's points in the coarse map.
__global__ void column_gradients(Size s, const float* fine_points, const float* affinity, const float* fused_gradient,
                                 const float* score_gradient, float* coarse_gradient) {
    const Rows at(s);
    const int64_t n = blockIdx.y, begin = n * s.points() + at.begin, column = at.first - at.begin;
    float* coarse = coarse_gradient + (n * s.points() + at.first) * s.channels;
    multiply<false>(at.rows, at.count, s.channels, affinity + begin * s.widest() + column, 1, s.widest(),
                    fused_gradient + begin * s.channels, s.channels,
                    [&](int r, int c, float value) { coarse[int64_t(r) * s.channels + c] = value; });
    multiply<false>(at.rows, at.count, s.channels, score_gradient + begin * s.widest() + column, 1, s.widest(),
                    fine_points + begin * s.channels, s.channels,
                    [&](int r, int c, float value) { coarse[int64_t(r) * s.channels + c] += value; });
}

// A block per entry; that of a cell's first entry adds them all up, from 0 in the coarse map and at targets, which the
// forward pass wrote over, and else from the upstream gradient.
template <class T, int N>
__global__ void spread(Size s, const int* cells, const float* weights, const int* next, const unsigned char* first,
                       const float* fine_gradient, const float* coarse_gradient, const T* coarse, T* to_fine, T* to_coarse,
                       float* to_factor) {
    __shared__ float memory[32];
    const int e = blockIdx.x;
    const int64_t n = blockIdx.y, offset = n * s.entries();
    if (!first[offset + e]) return;
    const bool in_coarse = e >= s.sources();
    const int64_t cell = in_coarse ? n * s.coarse_cells() + ~cells[offset + e] : n * s.cells() + cells[offset + e];
    const float* gradient = (in_coarse ? coarse_gradient : fine_gradient) + n * s.points() * s.channels;
    T* to = (in_coarse ? to_coarse : to_fine) + cell * s.channels;
    float product = 0;
    for (int c = threadIdx.x * N; c < s.channels; c += blockDim.x * N) {
        float sums[N] = {}, salient[N] = {};
        Pack<T, N> pack;
        if (e >= s.points() && !in_coarse) {
            pack = *reinterpret_cast<const Pack<T, N>*>(to + c);
            for (int i = 0; i < N; i++) sums[i] = to_float(pack.values[i]);
        }
        for (int k = e; k >= 0; k = next[offset + k]) {
            const float weight = weights[offset + k];
            const bool scaled = in_coarse && s.point(k) >= s.boundary;
            const auto values = *reinterpret_cast<const Pack<float, N>*>(gradient + int64_t(s.point(k)) * s.channels + c);
            for (int i = 0; i < N; i++) {
                sums[i] += weight * values.values[i];
                if (scaled) salient[i] += values.values[i];
            }
        }
        for (int i = 0; i < N; i++) pack.values[i] = from_float<T>(sums[i]);
        *reinterpret_cast<Pack<T, N>*>(to + c) = pack;
        if (in_coarse)
            for (int i = 0; i < N; i++) product += salient[i] * to_float(coarse[cell * s.channels + c + i]);
    }
    if (!in_coarse || !s.salient) return;
    product = block_sum(product, memory);
    if (threadIdx.x == 0) to_factor[cell] = product;
}

// A float's bits in the order of the floats; equal for 0 and -0, and 0 for NaN.
__device__ unsigned ordered(float x) {
    if (x != x) return 0;
    const unsigned bits = __float_as_uint(x == 0 ? 0.0f : x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// A block per image finds the key of the last of the largest, eight bits at a time, then lists them by position.
__global__ void top(int cells, int count, const float* x, int* positions) {
    __shared__ unsigned histogram[257], prefix, left;
    __shared__ int greater[1024], equal[1024];
    const int thread = threadIdx.x, threads = blockDim.x;
    x += int64_t(blockIdx.x) * cells;
    positions += int64_t(blockIdx.x) * count;
    if (thread == 0) prefix = 0, left = count, histogram[256] = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (thread < 256) histogram[thread] = 0;
        __syncthreads();
        for (int i = thread; i < cells; i += threads) {
            const unsigned key = ordered(x[i]);
            if (shift == 24 || (key ^ prefix) >> (shift + 8) == 0) atomicAdd(histogram + (key >> shift & 255), 1u);
        }
        for (int step = 1; step < 256; step *= 2) {  // to the number of keys with at least this digit
            __syncthreads();
            const unsigned more = thread + step < 256 ? histogram[thread + step] : 0;
            __syncthreads();
            if (thread < 256) histogram[thread] += more;
        }
        __syncthreads();
        const bool found = thread < 256 && histogram[thread] >= left && histogram[thread + 1] < left;
        __syncthreads();
        if (found) prefix |= unsigned(thread) << shift, left -= histogram[thread + 1];
        __syncthreads();
    }
    // Thread i has the i-th part of the positions; then sums of what the parts up to it have.
    const int each = (cells + threads - 1) / threads, begin = min(thread * each, cells), end = min(begin + each, cells);
    greater[thread] = equal[thread] = 0;
    for (int i = begin; i < end; i++) {
        const unsigned key = ordered(x[i]);
        greater[thread] += key > prefix, equal[thread] += key == prefix;
    }
    __syncthreads();
    for (int step = 1; step < threads; step *= 2) {
        const int g = thread >= step ? greater[thread - step] : 0, q = thread >= step ? equal[thread - step] : 0;
        __syncthreads();
        greater[thread] += g, equal[thread] += q;
        __syncthreads();
    }
    int above = thread ? greater[thread - 1] : 0, same = thread ? equal[thread - 1] : 0;
    for (int i = begin; i < end; i++) {
        const unsigned key = ordered(x[i]);
        if (key > prefix || (key == prefix && same < int(left))) positions[above + min(same, int(left))] = i;
        above += key > prefix, same += key == prefix;
    }
}

Size size_of(const Array& coarse, const Array& fine, const Options& options) {
    Size s;
    s.coarse_height = coarse.shape[1], s.coarse_width = coarse.shape[2];
    s.height = fine.shape[1], s.width = fine.shape[2], s.channels = fine.shape[3];
    s.boundary = options.at("boundary"), s.salient = options.at("salient");
    return s;
}

}  // namespace

// x (N, 1, H, W) float32 -> positions (N, count) int32 of the largest values, ascending; of equal ones the first
void points_top(const Array* in, const Array* out, const Options&) {
    const int cells = in[0].shape[2] * in[0].shape[3];
    launch(top, static_cast<unsigned>(in[0].shape[0]), 1024, 0, cells, int(out[0].shape[1]), as<float>(in[0]), as<int>(out[0]));
}

// coarse map, fine map, [boundary points (N, P)], [salient points, factor (N, 1, H, W) float32]
// -> fine map with the points; for the gradient: coarse and fine points (N, P, C), affinity, cells, weights, next, first
void points_flow(const Array* in, const Array* out, const Options& options) {
    const Size s = size_of(in[0], in[1], options);
    const unsigned n = in[0].shape[0];
    const Array* more = in + 2;
    const int* boundary = s.boundary ? as<int>(*more++) : nullptr;
    const int* salient = s.salient ? as<int>(*more++) : nullptr;
    const float* factor = s.salient ? as<float>(*more) : nullptr;
    float *coarse_points = as<float>(out[1]), *fine_points = as<float>(out[2]), *affinity = as<float>(out[3]);
    int *cells = as<int>(out[4]), *next = as<int>(out[6]);
    copy(in[1], out[0]);
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        launch(gather<T>, dim3(s.points(), n), 128, 0, s, as<T>(in[0]), as<T>(in[1]), boundary, salient, factor, coarse_points,
               fine_points, cells, as<float>(out[5]));
        launch(link, dim3(blocks(s.entries(), 128), n), 128, 0, s.entries(), cells, next, as<unsigned char>(out[7]));
        launch(flow<T>, row_grid(s, n), THREADS, 0, s, coarse_points, fine_points, cells, next, affinity, as<T>(out[0]));
    });
}

// upstream, coarse map, what `points_flow` gives for it
// -> gradients of the coarse map, the fine map and [the factor]; scratch: gradients of fused points, coarse points and
// fine points (N, P, C), and of the scores, as large as the affinity
void points_flow_gradient(const Array* in, const Array* out, const Options& options) {
    const Size s = size_of(in[1], in[0], options);
    const unsigned n = in[0].shape[0];
    const float *coarse_points = as<float>(in[2]), *fine_points = as<float>(in[3]), *affinity = as<float>(in[4]);
    const int *cells = as<int>(in[5]), *next = as<int>(in[7]);
    const Array* scratch = out + (s.salient ? 3 : 2);
    float* factor = s.salient ? as<float>(out[2]) : nullptr;
    float *fused = as<float>(scratch[0]), *coarse = as<float>(scratch[1]), *fine = as<float>(scratch[2]);
    float* scores = as<float>(scratch[3]);
    copy(in[0], out[1]);
    if (factor) check(cudaMemsetAsync(factor, 0, out[2].size() * sizeof(float)), "clearing a gradient");
    with_packs(in[0].type, s.channels, [&](auto zero, auto pack) {
        using T = decltype(zero);
        check(cudaMemsetAsync(out[0].data, 0, out[0].size() * sizeof(T)), "clearing a gradient");
        launch(row_gradients<T>, row_grid(s, n), THREADS, 0, s, coarse_points, affinity, cells, next, as<T>(in[0]), fused, scores,
               fine);
        launch(column_gradients, row_grid(s, n), THREADS, 0, s, fine_points, affinity, fused, scores, coarse);
        launch(spread<T, pack>, dim3(s.entries(), n), 32, 0, s, cells, as<float>(in[6]), next, as<unsigned char>(in[8]), fine,
               coarse, as<T>(in[1]), as<T>(out[1]), as<T>(out[0]), factor);
    });
}

}  // namespace pfseg
