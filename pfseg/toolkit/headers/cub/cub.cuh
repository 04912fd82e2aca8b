// Comes before CUB's own header: CUDA 13 dropped the iterators that Jittor 1.3.11's `where` uses, and the functors of its
// softmax.
#pragma once
#if __has_include("../../include-real/cccl/cub/cub.cuh")
#include "../../include-real/cccl/cub/cub.cuh"
#else
#include "../../include-real/cub/cub.cuh"
#endif
#include <thrust/version.h>
#if THRUST_VERSION >= 300000
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cuda/functional>
namespace cub {
using Max = ::cuda::maximum<>;
using Min = ::cuda::minimum<>;
using Sum = ::cuda::std::plus<>;
template <class T>
using CountingInputIterator = thrust::counting_iterator<T>;
template <class Value, class Function, class Source>
struct TransformInputIterator : thrust::transform_iterator<Function, Source, Value> {
    __host__ __device__ TransformInputIterator(Source source, Function function)
        : thrust::transform_iterator<Function, Source, Value>(source, function) {}
};
}  // namespace cub
#endif
