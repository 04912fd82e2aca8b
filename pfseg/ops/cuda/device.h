// What the kernels share: types, launches, sums over a block. The tests compile the kernels for the processor instead,
// with `emulation.h` in place of CUDA; so kernels use no other means than these, blockIdx and threadIdx (one-dimensional
// or not), __syncthreads, __shared__ and atomics; no shuffles.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulation.h"
#endif

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace pfseg {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

#ifdef __CUDACC__
// Run a kernel on a grid of blocks, with so many bytes of shared memory (see PFSEG_SHARED).
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Arguments... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    kernel<<<grid, block, shared>>>(arguments...);
    check(cudaGetLastError(), "launch of a kernel");
}
// Shared memory whose size the launch gives.
#define PFSEG_SHARED(type, name)                                  \
    extern __shared__ __align__(16) unsigned char pfseg_shared[]; \
    type* name = reinterpret_cast<type*>(pfseg_shared)
#endif

__host__ __device__ inline float to_float(float x) { return x; }
__host__ __device__ inline float to_float(bfloat16 x) { return __bfloat162float(x); }
__host__ __device__ inline float to_float(float16 x) { return __half2float(x); }
template <class T>
__host__ __device__ T from_float(float x);
template <>
__host__ __device__ inline float from_float<float>(float x) { return x; }
template <>
__host__ __device__ inline bfloat16 from_float<bfloat16>(float x) { return __float2bfloat16(x); }
template <>
__host__ __device__ inline float16 from_float<float16>(float x) { return __float2half(x); }

// Neighbouring values that one access moves.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T values[N];
};

// Call `work` with a value of the C++ type of a floating-point array.
template <class Work>
void with_type(Type type, Work work) {
    if (type == Type::float32) return work(float{});
    if (type == Type::bfloat16) return work(bfloat16{});
    if (type == Type::float16) return work(float16{});
    throw std::runtime_error("got an array of whole numbers where a kernel takes float32, bfloat16 or float16");
}

// The same, and with the size of packs that divides the number of channels: 16 bytes where it can be.
template <class Work>
void with_packs(Type type, int64_t channels, Work work) {
    with_type(type, [&](auto zero) {
        constexpr int whole = 16 / sizeof(zero);
        if (channels % whole == 0) return work(zero, std::integral_constant<int, whole>{});
        if (channels % 2 == 0) return work(zero, std::integral_constant<int, 2>{});
        return work(zero, std::integral_constant<int, 1>{});
    });
}

template <class T>
T* as(const Array& array) { return static_cast<T*>(array.data); }

inline unsigned blocks(int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); }

constexpr unsigned MANY = 132 * 16;  // blocks of 256 threads: enough to fill a large GPU

// Blocks of 256 threads that loop over `count` items.
inline unsigned grid_of(int64_t count) { return std::min(blocks(count, 256), MANY); }

// 256 threads: along x over packs of channels, as many as there are up to 32, along y over positions. Each thread keeps
// its channels, and with them what is known of these, while it goes through the positions.
inline dim3 block_over(int64_t packs) {
    unsigned width = 1;
    while (width < 32 && width < packs) width *= 2;
    return dim3(width, 256 / width);
}
inline dim3 grid_over(int64_t packs, int64_t positions) {
    const dim3 block = block_over(packs);
    const unsigned columns = blocks(packs, block.x);
    return dim3(columns, std::min(blocks(positions, block.y), std::max(1u, MANY / columns)));
}

// Sum over the threads of a one-dimensional block whose size is a power of 2, in a fixed order; the first thread has it.
// `memory` holds a float for each thread.
__device__ inline float block_sum(float value, float* memory) {
    const int thread = threadIdx.x;
    memory[thread] = value;
    __syncthreads();
    for (int step = blockDim.x / 2; step > 0; step /= 2) {
        if (thread < step) memory[thread] += memory[thread + step];
        __syncthreads();
    }
    return memory[0];
}

}  // namespace pfseg
