// Matrices of the resampling.
#pragma once
#include "functions.h"

namespace pfseg {
namespace cpu {

// A matrix whose rows are 0 outside a short range, as `weights` (rows, k) and `starts` (rows,) int32: output cell i is the
// sum over j < k of weights[i, j] * input[starts[i] + j].
struct Band {
    int64_t rows, k;
    const float* weights;
    const int32_t* starts;

    Band(const Array& weights, const Array& starts)
        : rows(weights.shape[0]), k(weights.shape[1]), weights(floats(weights)), starts(integers(starts)) {}
};

}  // namespace cpu
}  // namespace pfseg
