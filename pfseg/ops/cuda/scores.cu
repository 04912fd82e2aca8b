// Labels from logits.
#include "device.h"

namespace pfseg {
namespace {

constexpr int THREADS = 256;

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

}  // namespace pfseg
