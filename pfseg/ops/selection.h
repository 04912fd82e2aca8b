// Order statistics on a CPU.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {
namespace pfseg {

// The value at `position` (from 0) of `values` (count,) in ascending order.
float order_statistic(const float* values, int64_t count, int64_t position) {
    std::vector<float> copy(values, values + count);
    std::nth_element(copy.begin(), copy.begin() + position, copy.end());
    return copy[position];
}

}  // namespace pfseg
}  // namespace
