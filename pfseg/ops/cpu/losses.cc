// Losses of regions on a CPU.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "functions.h"

namespace pfseg {
namespace cpu {

// In: errors (K, P), members (K, P) 0 or 1. Out: (K, P), how much the Jaccard loss of a class grows with each error, by
// Lovász' extension; 0 for a class without members.
void losses_lovasz(const Array* in, const Array* out, const Options&) {
    const int64_t K = in[0].shape[0], P = in[0].shape[1];
    #pragma omp parallel for schedule(dynamic)
    for (int64_t k = 0; k < K; k++) {
        const float* errors = floats(in[0]) + k * P;
        const float* members = floats(in[1]) + k * P;
        float* slopes = floats(out[0]) + k * P;
        int64_t common = 0;
        for (int64_t p = 0; p < P; p++) common += members[p] > 0;
        if (common == 0) {
            std::fill(slopes, slopes + P, 0.0f);
            continue;
        }
        std::vector<int32_t> order(P);
        std::iota(order.begin(), order.end(), 0);
        std::sort(order.begin(), order.end(), [errors](int32_t a, int32_t b) {
            return errors[a] > errors[b] || (errors[a] == errors[b] && a < b);
        });
        double whole = double(common), shared = double(common);  // of union and intersection so far
        for (const int32_t p : order) {
            if (members[p] > 0) {
                slopes[p] = float(1 / whole);
                shared--;
            } else {
                slopes[p] = float(shared / (whole * (whole + 1)));
                whole++;
            }
        }
    }
}

}  // namespace cpu
}  // namespace pfseg
