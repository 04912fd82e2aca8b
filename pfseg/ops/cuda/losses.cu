// Losses of pixels: cross entropy with and without hard example mining, binary cross entropy of edges, order statistics.
//
// Logits are (N, K, H, W) float32, masks (N, H, W) int32; labels that are none of 0..K-1 and not ignored have no true
// class. Sums over pixels take a fixed order: each block leaves its part in `Scratch`, and the block that finishes last
// adds the parts up.
#include "device.h"

namespace pfseg {
namespace {

constexpr int THREADS = 256, BINS = 2048, PASSES = 3, MAX_BLOCKS = 132 * 16;

// What the launches of one loss hand on; zero at first, but for `partial`.
struct Scratch {
    unsigned arrived[PASSES + 2];  // blocks that have finished, of each launch
    unsigned settled;              // 1: what the later launches would find is known
    unsigned prefix;               // leading bits of the key sought
    unsigned below;                // keys with smaller leading bits
    unsigned histogram[PASSES][BINS];
    float partial[3][MAX_BLOCKS];
};

Scratch* scratch(const Array& memory, bool selects) {
    if (memory.size() * 4 < int64_t(sizeof(Scratch))) throw std::runtime_error("too little scratch memory for a loss");
    const size_t used = selects ? offsetof(Scratch, partial) : offsetof(Scratch, histogram);
    check(cudaMemsetAsync(memory.data, 0, used), "clearing counters");
    return as<Scratch>(memory);
}

// Pixels of all images; a thread takes a pack of neighbours of one image.
struct Pixels {
    unsigned count, plane;  // all, and of an image
    int classes;
};

Pixels pixels_of(const Array& logits) {
    const int64_t plane = logits.shape[2] * logits.shape[3], count = logits.shape[0] * plane;
    if (count >= 1LL << 31) throw std::runtime_error("a loss takes fewer than 2^31 pixels");
    return {unsigned(count), unsigned(plane), int(logits.shape[1])};
}

unsigned loss_grid(int64_t count) { return std::max(1u, std::min(blocks(count, THREADS), unsigned(MAX_BLOCKS))); }

// Call `work` with the number of logits of a pixel that a thread holds (0: it reads them again), and the size of packs.
template <class Work>
void with_classes(const Pixels& pixels, Work work) {
    const auto with_pack = [&](auto held) {
        if (pixels.plane % 4 == 0) return work(held, std::integral_constant<int, 4>{});
        return work(held, std::integral_constant<int, 1>{});
    };
    if (pixels.classes <= 8) return with_pack(std::integral_constant<int, 8>{});
    if (pixels.classes <= 16) return with_pack(std::integral_constant<int, 16>{});
    if (pixels.classes <= 32) return with_pack(std::integral_constant<int, 32>{});
    return with_pack(std::integral_constant<int, 0>{});
}

// Whether this is the last block to come here, of all; then it sees what the others have written.
__device__ inline bool last_to_arrive(unsigned* arrived) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    __syncthreads();
    __threadfence();
    return last;
}

// Sums over all threads; true for the one thread of the grid that has them, in place of its own.
template <int N>
__device__ bool grid_sums(float (&sums)[N], float (*partial)[MAX_BLOCKS], unsigned* arrived) {
    __shared__ float memory[THREADS];
    for (int i = 0; i < N; i++) {
        const float sum = block_sum(sums[i], memory);
        if (threadIdx.x == 0) partial[i][blockIdx.x] = sum;
    }
    if (!last_to_arrive(arrived)) return false;
    for (int i = 0; i < N; i++) {
        float sum = 0;
        for (unsigned part = threadIdx.x; part < gridDim.x; part += THREADS) sum += partial[i][part];
        sums[i] = block_sum(sum, memory);
    }
    return threadIdx.x == 0;
}

// Logits of a pack of pixels, made exponentials of their distance to the largest.
template <int HELD, int P>
struct Softmax {
    using Values = Pack<float, P>;
    const float* start;  // the first class's
    unsigned plane;
    int classes;
    Values held[HELD ? HELD : 1];
    float top[P], sum[P], truth[P];  // `truth`: the true class's logit, 0 without one

    __device__ Softmax(const Pixels& pixels, const float* logits, unsigned first, const Pack<int, P>& labels)
        : start(logits + int64_t(first / pixels.plane) * pixels.classes * pixels.plane + first % pixels.plane),
          plane(pixels.plane), classes(pixels.classes) {
        for (int i = 0; i < P; i++) top[i] = -INFINITY, sum[i] = truth[i] = 0;
#pragma unroll
        for (int k = 0; k < (HELD ? HELD : classes); k++) {
            if (HELD && k >= classes) continue;
            const Values x = read(k);
            if (HELD) held[k] = x;
            for (int i = 0; i < P; i++) {
                top[i] = max(top[i], x.values[i]);
                if (k == labels.values[i]) truth[i] = x.values[i];
            }
        }
#pragma unroll
        for (int k = 0; k < (HELD ? HELD : classes); k++) {
            if (HELD && k >= classes) continue;
            const Values e = exponentials(HELD ? held[k] : read(k));
            if (HELD) held[k] = e;
            for (int i = 0; i < P; i++) sum[i] += e.values[i];
        }
    }

    __device__ Values read(int k) const { return *reinterpret_cast<const Values*>(start + int64_t(k) * plane); }

    __device__ Values exponentials(Values x) const {
        for (int i = 0; i < P; i++) x.values[i] = expf(x.values[i] - top[i]);
        return x;
    }

    __device__ float loss(int i) const { return logf(sum[i]) + top[i] - truth[i]; }
};

__device__ inline float probability(float loss) {
    const float p = expf(-loss);
    return p > 1.0f ? 1.0f : p;
}

// NaN counts as hard, so that it shows in the loss.
__device__ inline bool is_hard(float loss, float limit) { return !(probability(loss) > limit); }

// Of the kept pixels: what the loss is, and what its gradient needs.
__device__ inline void finish(const float (&sums)[2], float limit, float* loss, float* state) {
    loss[0] = sums[1] > 0 ? sums[0] / sums[1] : 0.0f;
    state[0] = limit;
    state[1] = max(sums[1], 1.0f);
}

// Loss of each pixel, 0 where ignored. With `scratch` also the mean over those up to `threshold`, which settles the loss
// where they are `min_kept` or more.
template <int HELD, int P>
__global__ void pixel_losses(Pixels pixels, int ignored, const float* logits, const int* mask, float* losses,
                             Scratch* scratch, float threshold, float min_kept, float* loss, float* state) {
    float sums[2] = {};
    for (unsigned pack = blockIdx.x * THREADS + threadIdx.x; pack < pixels.count / P; pack += gridDim.x * THREADS) {
        const auto labels = reinterpret_cast<const Pack<int, P>*>(mask)[pack];
        const Softmax<HELD, P> softmax(pixels, logits, pack * P, labels);
        Pack<float, P> values;
        for (int i = 0; i < P; i++) {
            const bool valid = labels.values[i] != ignored;
            values.values[i] = valid ? softmax.loss(i) : 0.0f;
            if (valid && is_hard(values.values[i], threshold)) sums[0] += values.values[i], sums[1] += 1;
        }
        reinterpret_cast<Pack<float, P>*>(losses)[pack] = values;
    }
    if (!scratch || !grid_sums(sums, scratch->partial, scratch->arrived)) return;
    scratch->settled = sums[1] >= min_kept;
    finish(sums, threshold, loss, state);
}

// Mean over the valid pixels up to the limit in `state`, unless the loss is settled.
__global__ void kept_mean(unsigned count, int ignored, const float* losses, const int* mask, Scratch* scratch, float* loss,
                          float* state) {
    if (scratch->settled) return;
    const float limit = state[0];
    float sums[2] = {};
    for (unsigned pixel = blockIdx.x * THREADS + threadIdx.x; pixel < count; pixel += gridDim.x * THREADS)
        if (mask[pixel] != ignored && is_hard(losses[pixel], limit)) sums[0] += losses[pixel], sums[1] += 1;
    if (grid_sums(sums, scratch->partial, scratch->arrived + PASSES + 1)) finish(sums, limit, loss, state);
}

// Unsigned numbers in the order of floats: of probabilities, from losses, and of any values.
struct ProbabilityKey {
    const float* losses;
    __device__ unsigned operator()(unsigned i) const { return __float_as_uint(probability(losses[i])); }
    __device__ float value(unsigned key) const { return __uint_as_float(key); }
};
struct ValueKey {
    const float* values;
    __device__ unsigned operator()(unsigned i) const {
        const unsigned bits = __float_as_uint(values[i]);
        return bits >> 31 ? ~bits : bits | 1u << 31;
    }
    __device__ float value(unsigned key) const { return __uint_as_float(key >> 31 ? key & ~(1u << 31) : ~key); }
};

// The `k`-th smallest key (k from 1), `bits` more of its bits after those that earlier passes have found: counts keys by
// these, and finds where the k-th lies. The last pass gives the value, or `least` if that is larger.
template <class Key>
__global__ void select_pass(unsigned count, Key key, int pass, int shift, int bits, unsigned k, float least,
                            Scratch* scratch, float* limit) {
    if (scratch->settled) return;
    __shared__ unsigned counts[BINS], totals[THREADS];
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) counts[bin] = 0;
    __syncthreads();
    const unsigned prefix = scratch->prefix, below = scratch->below;
    // Neighbours are much alike: equal ones in a row are added at once.
    unsigned current = 0, run = 0;
    for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS) {
        const unsigned leading = key(i) >> shift, bin = leading & ((1u << bits) - 1);
        if (pass > 0 && leading >> bits != prefix) continue;
        if (bin != current) {
            if (run) atomicAdd(counts + current, run);
            current = bin, run = 0;
        }
        run++;
    }
    if (run) atomicAdd(counts + current, run);
    __syncthreads();
    unsigned* histogram = scratch->histogram[pass];
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS)
        if (counts[bin]) atomicAdd(histogram + bin, counts[bin]);
    if (!last_to_arrive(scratch->arrived + 1 + pass)) return;

    constexpr int EACH = BINS / THREADS;
    unsigned total = 0;
    for (int i = 0; i < EACH; i++) total += histogram[threadIdx.x * EACH + i];
    totals[threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.x > 0) return;
    unsigned seen = below;
    int group = 0;
    while (group < THREADS - 1 && seen + totals[group] < k) seen += totals[group++];
    int bin = group * EACH;
    while (bin < group * EACH + EACH - 1 && seen + histogram[bin] < k) seen += histogram[bin++];
    scratch->prefix = prefix << bits | unsigned(bin);
    scratch->below = seen;
    if (shift == 0) limit[0] = max(key.value(scratch->prefix), least);
}

template <class Key>
void select(unsigned count, Key key, unsigned k, float least, Scratch* memory, float* limit) {
    constexpr int BITS[PASSES] = {11, 11, 10};
    int shift = 32;
    for (int pass = 0; pass < PASSES; pass++) {
        shift -= BITS[pass];
        launch(select_pass<Key>, loss_grid(blocks(count, 8)), THREADS, 0, count, key, pass, shift, BITS[pass], k, least,
               memory, limit);
    }
}

// Gradients of pixels' losses: given, and of a mean over the kept.
struct Given {
    const float* upstream;
    __device__ float operator()(unsigned pixel) const { return upstream[pixel]; }
};
struct Kept {
    const float *losses, *state, *upstream;
    __device__ float operator()(unsigned pixel) const {
        return is_hard(losses[pixel], state[0]) ? upstream[0] / state[1] : 0.0f;
    }
};

template <int HELD, int P, class Factor>
__global__ void pixel_gradient(Pixels pixels, int ignored, const float* logits, const int* mask, Factor factor,
                               float* gradient) {
    for (unsigned pack = blockIdx.x * THREADS + threadIdx.x; pack < pixels.count / P; pack += gridDim.x * THREADS) {
        const auto labels = reinterpret_cast<const Pack<int, P>*>(mask)[pack];
        float factors[P];
        bool any = false;
        for (int i = 0; i < P; i++) {
            factors[i] = labels.values[i] != ignored ? factor(pack * P + i) : 0.0f;
            any |= factors[i] != 0;
        }
        const unsigned first = pack * P;
        float* target = gradient + int64_t(first / pixels.plane) * pixels.classes * pixels.plane + first % pixels.plane;
        if (!any) {
            for (int k = 0; k < pixels.classes; k++)
                *reinterpret_cast<Pack<float, P>*>(target + int64_t(k) * pixels.plane) = {};
            continue;
        }
        const Softmax<HELD, P> softmax(pixels, logits, first, labels);
        float scales[P];
        for (int i = 0; i < P; i++) scales[i] = 1.0f / softmax.sum[i];
#pragma unroll
        for (int k = 0; k < (HELD ? HELD : pixels.classes); k++) {
            if (HELD && k >= pixels.classes) continue;
            Pack<float, P> g = HELD ? softmax.held[k] : softmax.exponentials(softmax.read(k));
            for (int i = 0; i < P; i++) {
                const float truth = k == labels.values[i] ? 1.0f : 0.0f;
                g.values[i] = factors[i] == 0 ? 0.0f : (g.values[i] * scales[i] - truth) * factors[i];
            }
            *reinterpret_cast<Pack<float, P>*>(target + int64_t(k) * pixels.plane) = g;
        }
    }
}

template <class Factor>
void launch_gradient(const Array* in, const Array& gradient, int ignored, Factor factor) {
    const Pixels pixels = pixels_of(in[0]);
    with_classes(pixels, [&](auto held, auto pack) {
        launch(pixel_gradient<held, pack, Factor>, loss_grid(pixels.count / pack), THREADS, 0, pixels, ignored,
               as<float>(in[0]), as<int>(in[1]), factor, as<float>(gradient));
    });
}

// Sums of the edge and of the binary cross entropies on it and off it; the weighted mean of these.
template <int P>
__global__ void edge_loss(unsigned packs, const float* logits, const float* edge, Scratch* scratch, float* sums_out,
                          float* loss) {
    float sums[3] = {};
    for (unsigned pack = blockIdx.x * THREADS + threadIdx.x; pack < packs; pack += gridDim.x * THREADS) {
        const auto x = reinterpret_cast<const Pack<float, P>*>(logits)[pack];
        const auto t = reinterpret_cast<const Pack<float, P>*>(edge)[pack];
        for (int i = 0; i < P; i++) {
            const float v = x.values[i], e = t.values[i];
            const float entropy = (v < 0 ? 0.0f : v) - v * e + log1pf(expf(-fabsf(v)));
            sums[0] += e;
            sums[1] += e * entropy;
            sums[2] += (1.0f - e) * entropy;
        }
    }
    if (!grid_sums(sums, scratch->partial, scratch->arrived)) return;
    const float count = float(packs) * P, share = sums[0] / count;
    for (int i = 0; i < 3; i++) sums_out[i] = sums[i];
    loss[0] = (sums[1] * (1.0f - share) + sums[2] * share) / count;
}

template <int P>
__global__ void edge_gradient(unsigned packs, const float* logits, const float* edge, const float* positive,
                              const float* upstream, float* gradient) {
    const float count = float(packs) * P, share = positive[0] / count, factor = upstream[0] / count;
    for (unsigned pack = blockIdx.x * THREADS + threadIdx.x; pack < packs; pack += gridDim.x * THREADS) {
        const auto x = reinterpret_cast<const Pack<float, P>*>(logits)[pack];
        const auto t = reinterpret_cast<const Pack<float, P>*>(edge)[pack];
        Pack<float, P> g;
        for (int i = 0; i < P; i++) {
            const float e = t.values[i], weight = e * (1.0f - share) + (1.0f - e) * share;
            g.values[i] = factor * weight * (1.0f / (1.0f + expf(-x.values[i])) - e);
        }
        reinterpret_cast<Pack<float, P>*>(gradient)[pack] = g;
    }
}

}  // namespace

// logits, mask -> losses (N, H, W), 0 where `ignore_index`
void losses_pixels(const Array* in, const Array* out, const Options& options) {
    const Pixels pixels = pixels_of(in[0]);
    with_classes(pixels, [&](auto held, auto pack) {
        launch(pixel_losses<held, pack>, loss_grid(pixels.count / pack), THREADS, 0, pixels, int(options.at("ignore_index")),
               as<float>(in[0]), as<int>(in[1]), as<float>(out[0]), nullptr, 0.0f, 0.0f, nullptr, nullptr);
    });
}

// logits, mask, upstream (N, H, W) -> gradient of the logits
void losses_pixels_gradient(const Array* in, const Array* out, const Options& options) {
    launch_gradient(in, out[0], int(options.at("ignore_index")), Given{as<float>(in[2])});
}

// logits, mask -> losses of pixels (N, H, W), state (2: limit, number of kept pixels or 1), mean over the kept (1), scratch
//
// Kept are valid pixels whose true class has a probability up to `threshold`, or up to the `min_kept`-th smallest one.
void losses_mean(const Array* in, const Array* out, const Options& options) {
    const Pixels pixels = pixels_of(in[0]);
    const int ignored = int(options.at("ignore_index"));
    const unsigned min_kept = std::min(unsigned(options.at("min_kept")), pixels.count);
    const float threshold = float(options.at("threshold"));
    float *losses = as<float>(out[0]), *state = as<float>(out[1]), *loss = as<float>(out[2]);
    Scratch* memory = scratch(out[3], min_kept > 0);
    with_classes(pixels, [&](auto held, auto pack) {
        launch(pixel_losses<held, pack>, loss_grid(pixels.count / pack), THREADS, 0, pixels, ignored, as<float>(in[0]),
               as<int>(in[1]), losses, memory, threshold, float(min_kept), loss, state);
    });
    if (min_kept == 0) return;
    select(pixels.count, ProbabilityKey{losses}, min_kept, threshold, memory, state);
    launch(kept_mean, loss_grid(blocks(pixels.count, 8)), THREADS, 0, pixels.count, ignored, losses, as<int>(in[1]), memory,
           loss, state);
}

// logits, mask, losses of pixels, state, upstream (1) -> gradient of the logits
void losses_mean_gradient(const Array* in, const Array* out, const Options& options) {
    const Kept factor{as<float>(in[2]), as<float>(in[3]), as<float>(in[4])};
    launch_gradient(in, out[0], int(options.at("ignore_index")), factor);
}

// values float32 -> the `k`-th smallest (1), k from 1, and scratch
void losses_kth_smallest(const Array* in, const Array* out, const Options& options) {
    const unsigned k = unsigned(options.at("k"));
    select(unsigned(in[0].size()), ValueKey{as<float>(in[0])}, k, -INFINITY, scratch(out[1], true), as<float>(out[0]));
}

// logits (N, 1, H, W), edge (N, H, W) float32 -> loss (1), sums (3: edge, cross entropies on it, and off it), scratch
void losses_edge(const Array* in, const Array* out, const Options&) {
    Scratch* memory = scratch(out[2], false);
    const int64_t count = in[0].size();
    const auto run = [&](auto pack) {
        launch(edge_loss<pack>, loss_grid(count / pack), THREADS, 0, unsigned(count / pack), as<float>(in[0]),
               as<float>(in[1]), memory, as<float>(out[1]), as<float>(out[0]));
    };
    count % 4 == 0 ? run(std::integral_constant<int, 4>{}) : run(std::integral_constant<int, 1>{});
}

// logits, edge, sum of the edge (1), upstream (1) -> gradient of the logits
void losses_edge_gradient(const Array* in, const Array* out, const Options&) {
    const int64_t count = in[0].size();
    const auto run = [&](auto pack) {
        launch(edge_gradient<pack>, loss_grid(count / pack), THREADS, 0, unsigned(count / pack), as<float>(in[0]),
               as<float>(in[1]), as<float>(in[2]), as<float>(in[3]), as<float>(out[0]));
    };
    count % 4 == 0 ? run(std::integral_constant<int, 4>{}) : run(std::integral_constant<int, 1>{});
}

}  // namespace pfseg
