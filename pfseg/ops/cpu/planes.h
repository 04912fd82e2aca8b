// Planes (H, W) of one channel, copied between borders of zeros, and their convolution with taps of the channel's own.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace pfseg {
namespace cpu {

constexpr int64_t LANES = 16;  // of a vector; the compiler splits it where the processor's are shorter
typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

inline Vector load(const float* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// An odd number of rows and columns at a distance; padded such that planes keep their size.
struct Taps {
    int64_t h, w, dilation0, dilation1;

    int64_t above() const { return dilation0 * (h / 2); }
    int64_t before() const { return dilation1 * (w / 2); }
};

// Memory of a plane with room for the taps around it, whose lines are whole vectors with zeros behind the plane.
struct Padded {
    int64_t H, W, top, left, stride;
    std::vector<float> memory;

    Padded(int64_t H, int64_t W, const Taps& taps)
        : H(H), W(W), top(taps.above()), left(taps.before()),
          stride((W + 2 * left + LANES - 1) / LANES * LANES + LANES), memory((H + 2 * top) * stride) {}

    float* at(int64_t row) { return memory.data() + (top + row) * stride + left; }
    void fill(const float* plane) {
        for (int64_t i = 0; i < H; i++) std::memcpy(at(i), plane + i * W, W * sizeof(float));
    }
};

// Rows y.. of the result, R at a time, a vector of columns at a time. Sizes of 0 stand for those of `taps`.
template <int KH, int KW, int R>
inline void convolve_rows(const float* x, int64_t stride, const Taps& taps, const float* w, float bias, int64_t W, float* y) {
    for (int64_t column = 0; column < W; column += LANES) {
        Vector sums[R];
        for (int r = 0; r < R; r++) sums[r] = Vector{} + bias;
        const float* from = x + column;
        if (KH) {  // the weights of a column of taps stay in registers, and each load serves all rows that take it
            #pragma GCC unroll 32
            for (int j = 0; j < KW; j++)
                #pragma GCC unroll 32
                for (int line = 0; line < R + KH - 1; line++) {
                    const Vector v = load(from + line * stride + j);
                    #pragma GCC unroll 8
                    for (int r = 0; r < R; r++)
                        if (line >= r && line - r < KH) sums[r] += v * w[(line - r) * KW + j];
                }
        } else {
            for (int64_t i = 0; i < taps.h; i++)
                for (int64_t j = 0; j < taps.w; j++) {
                    const float weight = w[i * taps.w + j];
                    const float* part = from + i * taps.dilation0 * stride + j * taps.dilation1;
                    for (int r = 0; r < R; r++) sums[r] += load(part + r * stride) * weight;
                }
        }
        const int64_t left = W - column < LANES ? W - column : LANES;
        for (int r = 0; r < R; r++) std::memcpy(y + r * W + column, &sums[r], left * sizeof(float));
    }
}

template <int KH, int KW>
void convolve_by(Padded& x, const Taps& taps, const float* w, float bias, float* y) {
    const float* start = x.memory.data();
    const auto rows = [&](int64_t row, auto count) {
        constexpr int R = decltype(count)::value;
        convolve_rows<KH, KW, R>(start + row * x.stride, x.stride, taps, w, bias, x.W, y + row * x.W);
    };
    int64_t row = 0;
    for (; row + 8 <= x.H; row += 8) rows(row, std::integral_constant<int, 8>{});
    if (row < x.H && x.H >= 8) return rows(x.H - 8, std::integral_constant<int, 8>{});  // some of them once more
    for (; row < x.H; row++) rows(row, std::integral_constant<int, 1>{});
}

// The products of `upstream` and x at each tap, summed over the plane; G rows of taps at a time. The upstream has the
// same lines as x.
template <int KW, int G>
inline void correlate_rows(Padded& x, Padded& upstream, int64_t first, float* w) {
    Vector sums[G][KW] = {};
    for (int64_t row = 0; row < x.H; row++)
        for (int64_t column = 0; column < x.W; column += LANES) {
            const Vector u = load(upstream.at(row) + column);
            const float* from = x.memory.data() + (row + first) * x.stride + column;
            #pragma GCC unroll 32
            for (int g = 0; g < G; g++)
                #pragma GCC unroll 32
                for (int j = 0; j < KW; j++) sums[g][j] += u * load(from + g * x.stride + j);
        }
    for (int g = 0; g < G; g++)
        for (int j = 0; j < KW; j++)
            for (int lane = 0; lane < LANES; lane++) w[g * KW + j] += sums[g][j][lane];
}

template <int KH, int KW>
void correlate_by(Padded& x, Padded& upstream, const Taps&, float* w) {
    constexpr int G = KW == 1 ? 7 : KW * KH <= 25 ? KH : KW <= 7 ? 3 : 1;  // as many sums as there are registers
    int64_t first = 0;
    for (; first + G <= KH; first += G) correlate_rows<KW, G>(x, upstream, first, w + first * KW);
    if (KH % G) for (; first < KH; first++) correlate_rows<KW, 1>(x, upstream, first, w + first * KW);
}

template <>
inline void correlate_by<0, 0>(Padded& x, Padded& upstream, const Taps& taps, float* w) {
    for (int64_t i = 0; i < taps.h; i++)
        for (int64_t j = 0; j < taps.w; j++) {
            Vector sums = {};
            for (int64_t row = 0; row < x.H; row++) {
                const float* from = x.memory.data() + (row + i * taps.dilation0) * x.stride + j * taps.dilation1;
                for (int64_t column = 0; column < x.W; column += LANES)
                    sums += load(upstream.at(row) + column) * load(from + column);
            }
            for (int lane = 0; lane < LANES; lane++) w[i * taps.w + j] += sums[lane];
        }
}

// Call `work` with the sizes of the taps where there is code for them, else with 0.
template <class Work>
void with_taps(const Taps& t, Work work) {
#define PFSEG_TAPS(KH, KW) \
    if (t.h == KH && t.w == KW && t.dilation0 == 1 && t.dilation1 == 1) \
        return work(std::integral_constant<int, KH>{}, std::integral_constant<int, KW>{});
    PFSEG_TAPS(3, 3)
    PFSEG_TAPS(5, 5)
    PFSEG_TAPS(7, 7)
    PFSEG_TAPS(1, 7)
    PFSEG_TAPS(7, 1)
    PFSEG_TAPS(1, 11)
    PFSEG_TAPS(11, 1)
    PFSEG_TAPS(1, 21)
    PFSEG_TAPS(21, 1)
#undef PFSEG_TAPS
    work(std::integral_constant<int, 0>{}, std::integral_constant<int, 0>{});
}

}  // namespace cpu
}  // namespace pfseg
