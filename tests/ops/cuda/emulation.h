// Runs CUDA kernels on the processor, one block after the other, for tests on machines without a GPU: each thread of a
// block is a fibre, which __syncthreads lets wait for the others.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#ifndef __restrict__
#define __restrict__ __restrict
#endif

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }

namespace pfseg::emulation {
inline int64_t launches = 0;  // of kernels, and calls of what a GPU runs as one
inline bool only_counts = false;  // runs nothing
}

inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, void* = nullptr) {
    pfseg::emulation::launches++;
    std::memset(data, value, bytes);
    return cudaSuccess;
}

// Types of 16 bits, rounded to nearest even as a GPU does.
struct __nv_bfloat16 { uint16_t bits; };
struct __half { _Float16 value; };
inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return {0x7fff};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half(float x) { return {_Float16(x)}; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
inline float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline void __threadfence() {}
template <class T> T __ldg(const T* address) { return *address; }
template <class T> T atomicAdd(T* address, T value) { T old = *address; *address += value; return old; }
template <class T> T atomicMax(T* address, T value) { T old = *address; *address = std::max(old, value); return old; }
template <class T> T atomicMin(T* address, T value) { T old = *address; *address = std::min(old, value); return old; }
template <class T> T atomicCAS(T* address, T expected, T value) {
    T old = *address;
    if (old == expected) *address = value;
    return old;
}
using std::max;
using std::min;

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace pfseg::emulation {

struct Fibre {
    ucontext_t context;
    dim3 thread;
    bool done;
    std::vector<char> stack = std::vector<char>(128 * 1024);
};
inline std::vector<Fibre> fibres(1024);
inline ucontext_t scheduler;
inline Fibre* running;
inline std::function<void()> body;
inline std::vector<unsigned char> shared_memory;

inline void enter() {
    body();
    running->done = true;
    swapcontext(&running->context, &scheduler);
}

inline void run_block() {
    const unsigned count = blockDim.x * blockDim.y * blockDim.z;
    if (count == 0 || count > fibres.size()) throw std::runtime_error("a block has 1 to 1024 threads");
    for (unsigned i = 0; i < count; i++) {
        Fibre& fibre = fibres[i];
        fibre.thread = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
        fibre.done = false;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, enter, 0);
    }
    for (unsigned left = count; left > 0;) {
        unsigned ended = 0;
        for (unsigned i = 0; i < count; i++) {
            running = &fibres[i];
            if (running->done) continue;
            threadIdx = running->thread;
            swapcontext(&scheduler, &running->context);
            ended += running->done;
        }
        left -= ended;
    }
}

}  // namespace pfseg::emulation

// Only the block's threads that are still running have to arrive.
inline void __syncthreads() {
    using namespace pfseg::emulation;
    const dim3 thread = running->thread;
    swapcontext(&running->context, &scheduler);
    threadIdx = thread;
}

namespace pfseg {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Arguments... arguments) {
    emulation::launches++;
    if (emulation::only_counts) return;
    gridDim = grid, blockDim = block;
    if (shared > 232448) throw std::runtime_error("too much shared memory for a block");
    emulation::shared_memory.assign(shared + 16, 0xff);  // NaN, not 0: as on a GPU it holds anything
    emulation::body = [=] { kernel(arguments...); };
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) emulation::run_block();
}

}  // namespace pfseg

#define PFSEG_SHARED(type, name) \
    type* name = reinterpret_cast<type*>((reinterpret_cast<uintptr_t>(pfseg::emulation::shared_memory.data()) + 15) & ~15ull)
