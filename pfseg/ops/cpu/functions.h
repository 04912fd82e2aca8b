// The functions of the library for a CPU. Each is a Kernel, as those for a GPU are; the .cc file that defines it says what
// it takes. Arrays are row-major float32 unless said otherwise, and maps (N, C, H, W); those of functions with `last_` in
// front, which stand in for the GPU kernels of the same name, are (N, H, W, C), float32 or bfloat16 (see `values.h`).
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
    declare(last_batchnorm_moments) \
    declare(last_batchnorm_statistics) \
    declare(last_batchnorm_settle) \
    declare(last_batchnorm_normalise) \
    declare(last_batchnorm_gradient_sums) \
    declare(last_batchnorm_gradient) \
    declare(last_convolution_forward) \
    declare(last_convolution_gradient_x) \
    declare(last_convolution_gradient_w) \
    declare(last_convolution_gradient_bias) \
    declare(last_maps_to_last) \
    declare(last_maps_to_first) \
    declare(last_maps_join) \
    declare(last_maps_split) \
    declare(last_maps_add) \
    declare(last_maps_add_relu) \
    declare(last_maps_relu) \
    declare(last_maps_relu_gradient) \
    declare(last_maps_scale_channels) \
    declare(last_maps_modulate) \
    declare(last_maps_modulate_gradient) \
    declare(last_points_flow) \
    declare(last_points_flow_gradient) \
    declare(last_pool_max) \
    declare(last_pool_max_gradient) \
    declare(last_pool_mean) \
    declare(last_pool_mean_gradient) \
    declare(last_resampling_separable) \
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
