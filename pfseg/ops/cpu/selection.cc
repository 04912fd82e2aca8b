// Order statistics on a CPU.

#include <algorithm>
#include <vector>

#include "functions.h"

namespace pfseg {
namespace cpu {

// In: values (count,). Out: the k-th smallest (1,). Options: k (from 1).
void selection_order_statistic(const Array* in, const Array* out, const Options& options) {
    const float* values = floats(in[0]);
    std::vector<float> copy(values, values + in[0].size());
    const auto wanted = copy.begin() + int64_t(options.at("k")) - 1;
    std::nth_element(copy.begin(), wanted, copy.end());
    floats(out[0])[0] = *wanted;
}

}  // namespace cpu
}  // namespace pfseg
