// Labels and the confusion matrix, counted on the device.
#include "device.h"

namespace pfseg {
namespace {

constexpr int THREADS = 256, SHARED_CLASSES = 104;  // whose matrix fits into the 48 KiB that a block may always use

// The class of the largest logit, the first of equals; NaN counts as the largest.
template <int P>
__global__ void most_probable(int64_t packs, int64_t plane, int classes, const float* logits, uint8_t* labels) {
    for (int64_t pack = blockIdx.x * int64_t(THREADS) + threadIdx.x; pack < packs; pack += int64_t(gridDim.x) * THREADS) {
        const int64_t first = pack * P;
        const float* start = logits + first / plane * classes * plane + first % plane;
        auto top = *reinterpret_cast<const Pack<float, P>*>(start);
        Pack<uint8_t, P> label = {};
        for (int k = 1; k < classes; k++) {
            const auto x = *reinterpret_cast<const Pack<float, P>*>(start + k * plane);
            for (int i = 0; i < P; i++) {
                if (top.values[i] != top.values[i] || x.values[i] <= top.values[i]) continue;
                top.values[i] = x.values[i];
                label.values[i] = static_cast<uint8_t>(k);
            }
        }
        reinterpret_cast<Pack<uint8_t, P>*>(labels)[pack] = label;
    }
}

template <bool SHARED>
__global__ void count_pairs(int64_t pixels, int classes, int ignored, const uint8_t* labels, const int* mask, int* matrix) {
    PFSEG_SHARED(int, counts);
    const int cells = classes * classes;
    if (SHARED) {
        for (int cell = threadIdx.x; cell < cells; cell += THREADS) counts[cell] = 0;
        __syncthreads();
    }
    int* target = SHARED ? counts : matrix;
    // Neighbours are much alike: equal ones in a row are added at once.
    int current = 0, run = 0;
    for (int64_t i = blockIdx.x * int64_t(THREADS) + threadIdx.x; i < pixels; i += int64_t(gridDim.x) * THREADS) {
        const int truth = mask[i], label = labels[i];
        if (truth == ignored || truth < 0 || truth >= classes || label >= classes) continue;
        const int cell = truth * classes + label;
        if (cell != current) {
            if (run) atomicAdd(target + current, run);
            current = cell, run = 0;
        }
        run++;
    }
    if (run) atomicAdd(target + current, run);
    if (!SHARED) return;
    __syncthreads();
    for (int cell = threadIdx.x; cell < cells; cell += THREADS)
        if (counts[cell]) atomicAdd(matrix + cell, counts[cell]);
}

}  // namespace

// logits (N, K, H, W) float32, K up to 256 -> labels (N, H, W) uint8
void scores_labels(const Array* in, const Array* out, const Options&) {
    const int64_t plane = in[0].shape[2] * in[0].shape[3], pixels = out[0].size();
    const auto run = [&](auto pack) {
        launch(most_probable<pack>, grid_of(pixels / pack), THREADS, 0, pixels / pack, plane, int(in[0].shape[1]),
               as<float>(in[0]), as<uint8_t>(out[0]));
    };
    plane % 4 == 0 ? run(std::integral_constant<int, 4>{}) : run(std::integral_constant<int, 1>{});
}

// labels uint8, mask int32 of the same shape -> pixels (K, K) int32, [truth, label], but `ignore_index` and other labels
void scores_confusion(const Array* in, const Array* out, const Options& options) {
    const int classes = static_cast<int>(out[0].shape[0]), ignored = static_cast<int>(options.at("ignore_index"));
    const int64_t pixels = in[0].size();
    check(cudaMemsetAsync(out[0].data, 0, out[0].size() * sizeof(int)), "clearing a confusion matrix");
    const bool shared = classes <= SHARED_CLASSES;
    launch(shared ? count_pairs<true> : count_pairs<false>, grid_of((pixels + 15) / 16), THREADS,
           shared ? classes * classes * sizeof(int) : 0, pixels, classes, ignored, as<uint8_t>(in[0]), as<int>(in[1]),
           as<int>(out[0]));
}

}  // namespace pfseg
