// The functions of the library for a CPU. Each is a Kernel, as those for a GPU are; the .cc file that defines it says what
// it takes. Arrays are row-major float32 unless said otherwise, and maps (N, C, H, W).
#pragma once
#include "../cuda/kernels.h"

#define PFSEG_CPU_FUNCTIONS(declare) \
    declare(batchnorm_moments) \
    declare(batchnorm_normalise) \
    declare(batchnorm_gradient_sums) \
    declare(batchnorm_gradient) \
    declare(convolution_forward) \
    declare(convolution_gradient_x) \
    declare(convolution_gradient_w) \
    declare(convolution_pointwise_forward) \
    declare(convolution_pointwise_gradient_x) \
    declare(convolution_multiply) \
    declare(depthwise_forward) \
    declare(depthwise_gradient_x) \
    declare(depthwise_gradient_w) \
    declare(elementwise_gelu) \
    declare(elementwise_gelu_gradient) \
    declare(normalisation_layer) \
    declare(normalisation_layer_gradient) \
    declare(normalisation_group) \
    declare(normalisation_group_gradient) \
    declare(elementwise_scaled_add) \
    declare(elementwise_scaled_add_gradient) \
    declare(losses_lovasz) \
    declare(resampling_separable) \
    declare(sampling_forward) \
    declare(sampling_gradient_x) \
    declare(sampling_gradient_places) \
    declare(selection_order_statistic)

namespace pfseg {
namespace cpu {

#define PFSEG_CPU_DECLARE(name) void name(const Array* in, const Array* out, const Options& options);
PFSEG_CPU_FUNCTIONS(PFSEG_CPU_DECLARE)
#undef PFSEG_CPU_DECLARE

inline float* floats(const Array& array) { return static_cast<float*>(array.data); }
inline int32_t* integers(const Array& array) { return static_cast<int32_t*>(array.data); }

}  // namespace cpu
}  // namespace pfseg
