// Sums over the positions of maps (N, H, W, C), for each channel; in float32 and in a fixed order.
//
// A sum over all positions takes two stages: each block adds up a part of them for some channels and leaves the result in
// `partial`; the block that finishes last adds these up, part by part.
#pragma once
#include "device.h"

namespace pfseg {

constexpr int MAX_PARTS = 512, MAX_GROUPS = 4096;

// Blocks of a group of channels that have left their sums; 0 again after each launch.
static __device__ unsigned arrived[MAX_GROUPS];

struct Geometry {
    int64_t positions;  // N * H * W
    int channels, parts;
    int64_t each;  // positions of a part
    dim3 block;
};

template <int N>
Geometry geometry(const Array& x) {
    Geometry g;
    g.channels = static_cast<int>(x.shape[3]);
    g.positions = x.shape[0] * x.shape[1] * x.shape[2];
    g.block = block_over(g.channels / N);
    const unsigned wanted = std::max(1u, MANY / 2 / blocks(g.channels, g.block.x * N));
    g.parts = static_cast<int>(std::min<int64_t>({wanted, MAX_PARTS, blocks(g.positions, 4 * g.block.y)}));
    g.each = (g.positions + g.parts - 1) / g.parts;
    return g;
}

// Two sums over the positions, of each channel of a pack, of what `Value` makes of a position.
template <int N, class Value, class Finish>
__global__ void channel_sums(Geometry g, Value value, Finish finish, float* partial) {
    __shared__ float memory[2][256 * N];
    __shared__ bool last;
    const int width = blockDim.x * N, rows = blockDim.y;  // channels of the block, positions at a time
    const int first = blockIdx.x * width + threadIdx.x * N;
    float sums[2][N] = {};
    if (first < g.channels) {
        const int64_t end = min(g.positions, (blockIdx.y + 1) * g.each);
        value.prepare(first);
        for (int64_t position = blockIdx.y * g.each + threadIdx.y; position < end; position += rows)
            value.add(position, first, sums);
    }
    for (int i = 0; i < N; i++)
        for (int k = 0; k < 2; k++) memory[k][threadIdx.y * width + threadIdx.x * N + i] = sums[k][i];
    __syncthreads();
    if (threadIdx.y < 2 && first < g.channels) {
        for (int i = 0; i < N; i++) {
            float sum = 0;
            for (int row = 0; row < rows; row++) sum += memory[threadIdx.y][row * width + threadIdx.x * N + i];
            partial[(int64_t(blockIdx.y) * 2 + threadIdx.y) * g.channels + first + i] = sum;
        }
        __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) last = atomicAdd(arrived + blockIdx.x, 1u) == unsigned(g.parts - 1);
    __syncthreads();
    if (!last) return;
    if (threadIdx.x == 0 && threadIdx.y == 0) arrived[blockIdx.x] = 0;
    __threadfence();
    for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < width; c += 256) {
        const int channel = blockIdx.x * width + c;
        if (channel >= g.channels) continue;
        float total[2] = {};
        for (int part = 0; part < g.parts; part++)
            for (int k = 0; k < 2; k++) total[k] += partial[(int64_t(part) * 2 + k) * g.channels + channel];
        finish(channel, total[0], total[1]);
    }
}

template <int N, class Value, class Finish>
void sum_channels(const Geometry& g, Value value, Finish finish, const Array& scratch) {
    const unsigned groups = blocks(g.channels, g.block.x * N);
    if (groups > MAX_GROUPS) throw std::runtime_error("too many channels to sum up");
    launch(channel_sums<N, Value, Finish>, dim3(groups, g.parts), g.block, 0, g, value, finish, as<float>(scratch));
}

}  // namespace pfseg
