// The functions of the library of GPU kernels, and the arrays that they take.
//
// Each function takes arrays on the device, writes to arrays on the device, and queues its work on CUDA's default stream.
// Maps are (N, H, W, C), channels last, of the type that the network computes in; all else is float32 or int32.
// Throws std::runtime_error for a failed call of CUDA and for arrays that a kernel does not take.
#pragma once
#include <cstdint>
#include <string>
#include <unordered_map>

namespace pfseg {

enum class Type { float32, bfloat16, float16, int32, uint8 };

struct Array {
    void* data;
    Type type;
    int dims;
    int64_t shape[6];

    int64_t size() const {
        int64_t product = 1;
        for (int i = 0; i < dims; i++) product *= shape[i];
        return product;
    }
};

using Options = std::unordered_map<std::string, double>;
using Kernel = void (*)(const Array* in, const Array* out, const Options& options);

// Each is a Kernel; the .cu file that defines it says what it takes.
#define PFSEG_KERNELS(declare) \
    declare(losses_pixels) \
    declare(losses_pixels_gradient) \
    declare(losses_mean) \
    declare(losses_mean_gradient) \
    declare(losses_kth_smallest) \
    declare(losses_edge) \
    declare(losses_edge_gradient) \
    declare(scores_labels) \
    declare(maps_to_last) \
    declare(maps_to_first) \
    declare(maps_join) \
    declare(maps_split) \
    declare(maps_add_relu) \
    declare(maps_scale_channels) \
    declare(maps_modulate) \
    declare(maps_modulate_gradient) \
    declare(batchnorm_moments) \
    declare(batchnorm_statistics) \
    declare(batchnorm_settle) \
    declare(batchnorm_normalise) \
    declare(batchnorm_gradient_sums) \
    declare(batchnorm_gradient) \
    declare(depthwise_forward) \
    declare(depthwise_gradient_x) \
    declare(depthwise_gradient_w) \
    declare(elementwise_gelu) \
    declare(elementwise_gelu_gradient) \
    declare(elementwise_scaled_add) \
    declare(elementwise_scaled_add_gradient) \
    declare(normalisation_layer) \
    declare(normalisation_layer_gradient) \
    declare(normalisation_group) \
    declare(normalisation_group_gradient) \
    declare(resample_resize) \
    declare(resample_resize_gradient) \
    declare(resample_to_images) \
    declare(resample_to_images_gradient) \
    declare(resample_nearest) \
    declare(resample_nearest_gradient) \
    declare(resample_average) \
    declare(resample_average_gradient) \
    declare(resample_max) \
    declare(resample_max_gradient) \
    declare(pool_max) \
    declare(pool_max_gradient) \
    declare(pool_mean) \
    declare(pool_mean_gradient) \
    declare(points_top) \
    declare(points_flow) \
    declare(points_flow_gradient) \
    declare(convolution_pack) \
    declare(convolution_unpack) \
    declare(convolution_forward) \
    declare(convolution_gradient_x) \
    declare(convolution_gradient_w) \
    declare(convolution_gradient_bias) \
    declare(convolution_widen) \
    declare(optimizer_factor) \
    declare(optimizer_sgd) \
    declare(optimizer_adam) \
    declare(optimizer_average) \
    declare(optimizer_join) \
    declare(optimizer_split) \
    declare(ranks_average)

#define PFSEG_DECLARE(name) void name(const Array* in, const Array* out, const Options& options);
PFSEG_KERNELS(PFSEG_DECLARE)
#undef PFSEG_DECLARE

}  // namespace pfseg
