// Bilinear resizing and adaptive pooling, of maps (N, H, W, C) or, with the option `planar`, of
// planes (N, C, H, W).
//
// All are weighted sums over a range of rows and a range of columns. The gradients are, too: each input position gathers
// from the outputs that took it, so that no sum depends on the order in which threads run.
#include <climits>

#include "device.h"

namespace pfseg {
namespace {

// First and last position of a range; empty where last < first.
struct Range {
    int first, last;
};

// One side of a resize: output i lies at (i * in + offset) / out of the input, but inside of it.
struct Resize {
    int in, out, offset;  // `out` at least 1
    int last, size;       // last position of the input, positions of the output

    // With `align_corners` the first and last positions meet, otherwise the edges half a position beyond them.
    Resize(int64_t from, int64_t to, bool align_corners)
        : in(int(align_corners ? from - 1 : 2 * from)),
          out(int(align_corners ? max(to - 1, int64_t(1)) : 2 * to)),
          offset(int(align_corners ? 0 : from - to)),
          last(int(from) - 1),
          size(int(to)) {}

    __host__ __device__ int place(int i) const { return min(max(i * in + offset, 0), last * out); }  // times `out`
    __host__ __device__ Range inputs(int i) const {
        const int low = place(i) / out;
        return {low, low + (place(i) % out > 0)};
    }
    __host__ __device__ Range outputs(int j) const {
        const int before = (j - 1) * out - offset, after = (j + 1) * out - offset;
        const int first = j == 0 || before < 0 ? 0 : before / in + 1;
        return {first, j == last ? size - 1 : min(size - 1, (after + in - 1) / in - 1)};
    }
    __host__ __device__ float weight(int i, int j) const { return 1.0f - float(abs(place(i) - j * out)) / float(out); }
};

// One side of adaptive pooling; see `pooling_windows` in resampling.py for the two rules.
struct Pool {
    int in, out;        // positions
    int stride, width;  // of the windows; 0 by the rule of PyTorch

    Pool(int64_t from, int64_t to, bool fixed) : in(int(from)), out(int(to)), stride(fixed ? in / out : 0) {
        width = fixed ? in - (out - 1) * stride : 0;
    }

    __host__ __device__ Range inputs(int i) const {
        if (stride) return {i * stride, i * stride + width - 1};
        return {i * in / out, ((i + 1) * in + out - 1) / out - 1};
    }
    __host__ __device__ Range outputs(int j) const {
        if (stride) return {max(0, j - width + stride) / stride, min(out - 1, j / stride)};
        return {j * out / in, ((j + 1) * out - 1) / in};
    }
    __host__ __device__ float weight(int i, int) const {
        const Range window = inputs(i);
        return 1.0f / float(window.last - window.first + 1);
    }
};

// One side of nearest-neighbour resizing: output i takes position floor(i * in / out).
struct Nearest {
    int in, out;  // positions

    __host__ __device__ Range inputs(int i) const { return {i * in / out, i * in / out}; }
    __host__ __device__ Range outputs(int j) const { return {(j * out + in - 1) / in, ((j + 1) * out + in - 1) / in - 1}; }
    __host__ __device__ float weight(int, int) const { return 1.0f; }
};

// What a position of the result takes of the source: the result is the output, or the gradient of the input.
template <class Side>
struct Forward {
    Side side;
    __host__ __device__ Range range(int i) const { return side.inputs(i); }
    __host__ __device__ float weight(int i, int j) const { return side.weight(i, j); }
};
template <class Side>
struct Backward {
    Side side;
    __host__ __device__ Range range(int j) const { return side.outputs(j); }
    __host__ __device__ float weight(int j, int i) const { return side.weight(i, j); }
};

// Maps (N, H, W, C), a plane being a map of one channel.
struct Shape {
    int64_t n;
    int height, width, channels;

    Shape(const Array& x, bool planar)
        : n(planar ? x.shape[0] * x.shape[1] : x.shape[0]),
          height(int(x.shape[planar ? 2 : 1])),
          width(int(x.shape[planar ? 3 : 2])),
          channels(planar ? 1 : int(x.shape[3])) {}
};

// Blocks (rows of all maps, chunks of a row): each thread sums a pack of channels at one position.
template <class T, int N, class Side>
__global__ void resample(Shape from, Shape to, Side rows, Side columns, const T* __restrict__ x, T* __restrict__ y) {
    const int packs = to.channels / N, item = blockIdx.y * blockDim.x + threadIdx.x;
    if (item >= to.width * packs) return;
    const int column = item / packs, row = blockIdx.x % to.height;
    const Range vertical = rows.range(row), horizontal = columns.range(column);
    const T* source = x + blockIdx.x / to.height * int64_t(from.height) * from.width * from.channels + (item % packs) * N;
    float sums[N] = {};
    for (int r = vertical.first; r <= vertical.last; r++) {
        const T* line = source + r * int64_t(from.width) * from.channels;
        float sum[N] = {};
#pragma unroll 4
        for (int c = horizontal.first; c <= horizontal.last; c++) {
            const auto pack = *reinterpret_cast<const Pack<T, N>*>(line + c * int64_t(from.channels));
            const float weight = columns.weight(column, c);
            for (int i = 0; i < N; i++) sum[i] += weight * to_float(pack.values[i]);
        }
        const float weight = rows.weight(row, r);
        for (int i = 0; i < N; i++) sums[i] += weight * sum[i];
    }
    Pack<T, N> result;
    for (int i = 0; i < N; i++) result.values[i] = from_float<T>(sums[i]);
    *reinterpret_cast<Pack<T, N>*>(y + (blockIdx.x * int64_t(to.width) + column) * to.channels + (item % packs) * N) = result;
}

constexpr int THREADS = 256;

// Blocks (positions of all maps, groups of packs) for long sums: threads (packs, parts of the sum).
template <class T, int N, class Side>
__global__ void resample_long(Shape from, Shape to, Side rows, Side columns, const T* __restrict__ x, T* __restrict__ y) {
    __shared__ float memory[N][THREADS];
    const int packs = to.channels / N, pack = blockIdx.y * blockDim.x + threadIdx.x;
    const int64_t position = blockIdx.x;
    const int column = position % to.width, row = position / to.width % to.height;
    const Range vertical = rows.range(row), horizontal = columns.range(column);
    const T* source = x + position / (to.width * to.height) * from.height * from.width * from.channels + pack * N;
    float sums[N] = {};
    if (pack < packs) {
        const int wide = max(horizontal.last - horizontal.first + 1, 0);
        const int count = max(vertical.last - vertical.first + 1, 0) * wide;
#pragma unroll 4
        for (int k = threadIdx.y; k < count; k += blockDim.y) {
            const int r = vertical.first + k / wide, c = horizontal.first + k % wide;
            const auto value = *reinterpret_cast<const Pack<T, N>*>(source + (r * int64_t(from.width) + c) * from.channels);
            const float weight = rows.weight(row, r) * columns.weight(column, c);
            for (int i = 0; i < N; i++) sums[i] += weight * to_float(value.values[i]);
        }
    }
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int i = 0; i < N; i++) memory[i][thread] = sums[i];
    __syncthreads();
    for (int step = blockDim.y / 2; step > 0; step /= 2) {
        if (threadIdx.y < step)
            for (int i = 0; i < N; i++) memory[i][thread] += memory[i][thread + step * blockDim.x];
        __syncthreads();
    }
    if (threadIdx.y > 0 || pack >= packs) return;
    Pack<T, N> result;
    for (int i = 0; i < N; i++) result.values[i] = from_float<T>(memory[i][thread]);
    *reinterpret_cast<Pack<T, N>*>(y + position * to.channels + pack * N) = result;
}

// Length of the range of a position in the middle.
template <class Side>
int64_t usual(const Side& side, int size) {
    const Range range = side.range(size / 2);
    return range.last - range.first + 1;
}

template <class Side>
void resample(const Array& x, const Array& y, bool planar, Side rows, Side columns) {
    const Shape from(x, planar), to(y, planar);
    with_packs(x.type, to.channels, [&](auto zero, auto pack) {
        using T = decltype(zero);
        constexpr int N = pack;
        const int packs = to.channels / N;
        const int64_t positions = to.n * to.height * to.width;
        const int64_t taps = usual(rows, to.height) * usual(columns, to.width);
        if (taps >= 32 && positions * packs < 132 * 256) {
            unsigned width = 1;
            while (width < 8 && int(width) < packs) width *= 2;
            launch(resample_long<T, N, Side>, dim3(unsigned(positions), blocks(packs, width)), dim3(width, THREADS / width), 0,
                   from, to, rows, columns, as<const T>(x), as<T>(y));
            return;
        }
        const int64_t items = int64_t(to.width) * packs;
        const unsigned threads = unsigned(std::min<int64_t>(THREADS, (items + 31) / 32 * 32));
        launch(resample<T, N, Side>, dim3(unsigned(to.n * to.height), blocks(items, threads)), threads, 0, from, to, rows,
               columns, as<const T>(x), as<T>(y));
    });
}

// Blocks (rows of all images, chunks of a row) of threads (columns, channels): the source's rows are interpolated first,
// in shared memory.
template <class T>
__global__ void to_images(int height, int width, int channels, int out_height, int out_width, int held, Resize rows,
                          Resize columns, const T* __restrict__ x, float* __restrict__ y) {
    PFSEG_SHARED(float, line);  // (columns, channels), each column an odd number of values
    const int stride = channels | 1;
    const int row = blockIdx.x % out_height, first = blockIdx.y * blockDim.x;
    const int64_t image = blockIdx.x / out_height;
    const int start = columns.inputs(first).first;
    const int end = columns.inputs(min(first + int(blockDim.x), out_width) - 1).last;
    const Range vertical = rows.inputs(row);
    const float upper = rows.weight(row, vertical.first), lower = 1.0f - upper;
    const T* above = x + ((image * height + vertical.first) * width + start) * channels;
    const T* below = x + ((image * height + vertical.last) * width + start) * channels;
    const int values = min(end - start + 1, held) * channels;
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < values; i += blockDim.x * blockDim.y)
        line[i / channels * stride + i % channels] = upper * to_float(above[i]) + lower * to_float(below[i]);
    __syncthreads();
    const int column = first + threadIdx.x;
    if (column >= out_width) return;
    const Range horizontal = columns.inputs(column);
    const float left = columns.weight(column, horizontal.first), right = 1.0f - left;
    const float* a = line + (horizontal.first - start) * stride;
    const float* b = line + (horizontal.last - start) * stride;
    const int64_t plane = int64_t(out_height) * out_width;
    float* to = y + image * channels * plane + int64_t(row) * out_width + column;
    for (int k = threadIdx.y; k < channels; k += blockDim.y) to[k * plane] = left * a[k] + right * b[k];
}

constexpr int TILE_ROWS = 8, AHEAD = 4;

// Blocks (tiles of cells, planes of the images): sums over the upstream rows into shared memory, each value read once,
// then over its columns.
template <class T>
__global__ void to_images_gradient(int height, int width, int channels, int out_height, int out_width, int tile_width,
                                   Resize rows, Resize columns, const float* __restrict__ upstream, T* __restrict__ gradient) {
    PFSEG_SHARED(float, sums);  // (TILE_ROWS, upstream columns of the tile)
    const int tiles = (width + tile_width - 1) / tile_width;
    const int x0 = blockIdx.x % tiles * tile_width, x1 = min(x0 + tile_width, width);
    const int y0 = blockIdx.x / tiles * TILE_ROWS, y1 = min(y0 + TILE_ROWS, height);
    const int left = columns.outputs(x0).first, wide = columns.outputs(x1 - 1).last - left + 1;
    const int top = rows.outputs(y0).first, bottom = rows.outputs(y1 - 1).last;
    const float* plane = upstream + blockIdx.y * int64_t(out_height) * out_width;
    for (int c = threadIdx.x; c < wide; c += blockDim.x) {
        int row = y0 - 1;           // of the cells
        float here = 0, below = 0;  // sums of this row and of the next
        for (int r = top; r <= bottom; r += AHEAD) {
            float values[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) values[i] = r + i <= bottom ? plane[(r + i) * int64_t(out_width) + left + c] : 0.0f;
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (r + i > bottom) break;
                const int low = rows.inputs(r + i).first;
                for (; row < low; row++) {
                    if (row >= y0 && row < y1) sums[(row - y0) * wide + c] = here;
                    here = below, below = 0;
                }
                const float weight = rows.weight(r + i, low);
                here += weight * values[i];
                below += (1.0f - weight) * values[i];
            }
        }
        for (; row < y1; row++) {
            if (row >= y0) sums[(row - y0) * wide + c] = here;
            here = below, below = 0;
        }
    }
    __syncthreads();
    const int64_t image = blockIdx.y / channels;
    for (int cell = threadIdx.x; cell < (y1 - y0) * (x1 - x0); cell += blockDim.x) {
        const int y = cell / (x1 - x0), x = x0 + cell % (x1 - x0);
        const Range range = columns.outputs(x);
        float sum = 0;
        for (int c = range.first; c <= range.last; c++) sum += columns.weight(c, x) * sums[y * wide + c - left];
        gradient[((image * height + y0 + y) * width + x) * channels + blockIdx.y % channels] = from_float<T>(sum);
    }
}

// A value and where it is; of equal values the first counts, and NaN is less than all.
struct Best {
    float value;
    int at;
    __device__ void take(float other, int where) {
        if (other > value || (other == value && where < at)) value = other, at = where;
    }
};

// One block for each cell.
__global__ void max_of_windows(int width, Pool rows, Pool columns, const float* x, float* y, int* positions) {
    __shared__ Best memory[128];
    const int cells = rows.out * columns.out, cell = blockIdx.x % cells;
    const Range vertical = rows.inputs(cell / columns.out), horizontal = columns.inputs(cell % columns.out);
    const float* plane = x + blockIdx.x / cells * int64_t(rows.in) * width;
    const int wide = horizontal.last - horizontal.first + 1, count = (vertical.last - vertical.first + 1) * wide;
    Best best{-INFINITY, INT_MAX};
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
        const int at = (vertical.first + k / wide) * width + horizontal.first + k % wide;
        best.take(plane[at] == plane[at] ? plane[at] : -INFINITY, at);
    }
    memory[threadIdx.x] = best;
    __syncthreads();
    for (int step = blockDim.x / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) memory[threadIdx.x].take(memory[threadIdx.x + step].value, memory[threadIdx.x + step].at);
        __syncthreads();
    }
    if (threadIdx.x > 0) return;
    y[blockIdx.x] = plane[memory[0].at];
    positions[blockIdx.x] = memory[0].at;
}

// One thread for each position of the input: windows overlap, so several may have chosen it.
__global__ void max_of_windows_gradient(int64_t count, Pool rows, Pool columns, const float* upstream, const int* positions,
                                        float* gradient) {
    const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
    if (i >= count) return;
    const int area = rows.in * columns.in, at = i % area;
    const int64_t first = i / area * rows.out * columns.out;
    const Range vertical = rows.outputs(at / columns.in), horizontal = columns.outputs(at % columns.in);
    float sum = 0;
    for (int r = vertical.first; r <= vertical.last; r++)
        for (int c = horizontal.first; c <= horizontal.last; c++) {
            const int64_t cell = first + r * columns.out + c;
            if (positions[cell] == at) sum += upstream[cell];
        }
    gradient[i] = sum;
}

// Work on arrays of the sides of a resize, or of adaptive pooling, of x to y.
template <class Work>
void with_resize(const Array& x, const Array& y, const Options& options, Work work) {
    const bool planar = options.at("planar"), align = options.at("align_corners");
    const Shape from(x, planar), to(y, planar);
    work(planar, Resize(from.height, to.height, align), Resize(from.width, to.width, align));
}
template <class Work>
void with_pool(const Array& x, const Array& y, const Options& options, Work work) {
    const bool planar = options.at("planar"), fixed = options.at("fixed");
    const Shape from(x, planar), to(y, planar);
    work(planar, Pool(from.height, to.height, fixed), Pool(from.width, to.width, fixed));
}

}  // namespace

// x -> y, resized to its size
void resample_resize(const Array* in, const Array* out, const Options& options) {
    with_resize(in[0], out[0], options, [&](bool planar, Resize rows, Resize columns) {
        resample(in[0], out[0], planar, Forward<Resize>{rows}, Forward<Resize>{columns});
    });
}

// upstream -> gradient of x
void resample_resize_gradient(const Array* in, const Array* out, const Options& options) {
    with_resize(out[0], in[0], options, [&](bool planar, Resize rows, Resize columns) {
        resample(in[0], out[0], planar, Backward<Resize>{rows}, Backward<Resize>{columns});
    });
}

// x -> y, its values repeated
void resample_nearest(const Array* in, const Array* out, const Options& options) {
    const bool planar = options.at("planar");
    const Shape from(in[0], planar), to(out[0], planar);
    resample(in[0], out[0], planar, Forward<Nearest>{{from.height, to.height}}, Forward<Nearest>{{from.width, to.width}});
}

// upstream -> gradient of x
void resample_nearest_gradient(const Array* in, const Array* out, const Options& options) {
    const bool planar = options.at("planar");
    const Shape from(out[0], planar), to(in[0], planar);
    resample(in[0], out[0], planar, Backward<Nearest>{{from.height, to.height}}, Backward<Nearest>{{from.width, to.width}});
}

// x -> y, means of its cells' windows
void resample_average(const Array* in, const Array* out, const Options& options) {
    with_pool(in[0], out[0], options, [&](bool planar, Pool rows, Pool columns) {
        resample(in[0], out[0], planar, Forward<Pool>{rows}, Forward<Pool>{columns});
    });
}

// upstream -> gradient of x
void resample_average_gradient(const Array* in, const Array* out, const Options& options) {
    with_pool(out[0], in[0], options, [&](bool planar, Pool rows, Pool columns) {
        resample(in[0], out[0], planar, Backward<Pool>{rows}, Backward<Pool>{columns});
    });
}

// maps (N, h, w, K) -> images (N, K, H, W) float32
void resample_to_images(const Array* in, const Array* out, const Options& options) {
    const int height = int(in[0].shape[1]), width = int(in[0].shape[2]), channels = int(in[0].shape[3]);
    const int out_height = int(out[0].shape[2]), out_width = int(out[0].shape[3]);
    const bool align = options.at("align_corners");
    const Resize rows(height, out_height, align), columns(width, out_width, align);
    // A block takes so many columns that those they come from fit into 46 KiB.
    const int64_t most = 46 * 1024 / ((channels | 1) * sizeof(float));
    unsigned tile = blocks(blocks(out_width, blocks(out_width, 256)), 32) * 32;
    const auto needed = [&] { return std::min<int64_t>(width, int64_t(tile - 1) * columns.in / columns.out + 3); };
    while (tile > 1 && needed() > most) tile /= 2;
    if (needed() > most) throw std::runtime_error("resizing to images takes at most 3,900 channels");
    const size_t shared = needed() * (channels | 1) * sizeof(float);
    const dim3 grid(unsigned(in[0].shape[0] * out_height), blocks(out_width, tile)), block(tile, std::max(1u, 256 / tile));
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        launch(to_images<T>, grid, block, shared, height, width, channels, out_height, out_width, int(needed()), rows, columns,
               as<const T>(in[0]), as<float>(out[0]));
    });
}

// upstream (N, K, H, W) float32 -> gradient of the maps (N, h, w, K)
void resample_to_images_gradient(const Array* in, const Array* out, const Options& options) {
    const int height = int(out[0].shape[1]), width = int(out[0].shape[2]), channels = int(out[0].shape[3]);
    const int out_height = int(in[0].shape[2]), out_width = int(in[0].shape[3]);
    const bool align = options.at("align_corners");
    const Resize rows(height, out_height, align), columns(width, out_width, align);
    // Cells of a tile, such that each thread has about one upstream column.
    const int64_t most = std::max<int64_t>(1, int64_t(THREADS) * columns.in / columns.out - 1);
    const int tile = int(blocks(width, blocks(width, most)));
    const int64_t wide = columns.in == 0 ? out_width : int64_t(tile + 1) * columns.out / columns.in + 1;
    const size_t shared = std::min<int64_t>(wide, out_width) * TILE_ROWS * sizeof(float);
    if (shared > 48 * 1024) throw std::runtime_error("the gradient of resizing to images takes scales of up to 700");
    const dim3 grid(blocks(width, tile) * blocks(height, TILE_ROWS), unsigned(in[0].shape[0] * channels));
    with_type(out[0].type, [&](auto zero) {
        using T = decltype(zero);
        launch(to_images_gradient<T>, grid, THREADS, shared, height, width, channels, out_height, out_width, tile, rows,
               columns, as<const float>(in[0]), as<T>(out[0]));
    });
}

// planes (N, 1, H, W) float32 -> maxima of their cells' windows (N, 1, out, out), flat positions (N, out * out) int32
void resample_max(const Array* in, const Array* out, const Options& options) {
    with_pool(in[0], out[0], options, [&](bool, Pool rows, Pool columns) {
        launch(max_of_windows, unsigned(out[0].size()), 128, 0, int(in[0].shape[3]), rows, columns, as<const float>(in[0]),
               as<float>(out[0]), as<int>(out[1]));
    });
}

// upstream, flat positions -> gradient of the planes
void resample_max_gradient(const Array* in, const Array* out, const Options& options) {
    with_pool(out[0], in[0], options, [&](bool, Pool rows, Pool columns) {
        launch(max_of_windows_gradient, blocks(out[0].size(), 256), 256, 0, out[0].size(), rows, columns,
               as<const float>(in[0]), as<const int>(in[1]), as<float>(out[0]));
    });
}

}  // namespace pfseg
