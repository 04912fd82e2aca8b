// Values of maps (N, H, W, C), float32 or bfloat16; all computing is in float32.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "functions.h"

namespace pfseg {
namespace cpu {

struct bfloat16 { uint16_t bits; };

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

template <class T> T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
// To the nearest, ties to even. NaN is told by its bits: the compiler takes all numbers for finite.
template <> inline bfloat16 from_float<bfloat16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded)};
}

// Call `work` with a value of the C++ type of maps.
template <class Work> void with_type(Type type, Work work) {
    if (type == Type::float32) return work(float{});
    if (type == Type::bfloat16) return work(bfloat16{});
    throw std::runtime_error("maps on a CPU are float32 or bfloat16");
}

template <class T> T* as(const Array& array) { return static_cast<T*>(array.data); }

// Positions and channels of maps (N, H, W, C).
struct Maps {
    int64_t positions, channels;

    explicit Maps(const Array& x) : positions(x.shape[0] * x.shape[1] * x.shape[2]), channels(x.shape[3]) {}
};

}  // namespace cpu
}  // namespace pfseg
