// In place of cuDNN and cuBLAS: plain loops.
#include "libraries.h"

// Launches so far; whether those from now on run nothing.
extern "C" int64_t pfseg_launches(bool only_counts) {
    pfseg::emulation::only_counts = only_counts;
    return pfseg::emulation::launches;
}

namespace pfseg {

void convolve(Pass pass, const Convolution& convolution) { convolve_directly(pass, convolution); }

void multiply(int64_t rows, int64_t columns, int64_t inner, const Matrix& a, const Matrix& b, const Matrix& c, bool) {
    emulation::launches++;
    if (emulation::only_counts) return;
    const auto at = [](const Matrix& m, int64_t row, int64_t column) {
        return m.transposed ? column * m.stride + row : row * m.stride + column;
    };
    with_type(a.type, [&](auto in) {
        with_type(c.type, [&](auto out) {
            using T = decltype(in);
            using To = decltype(out);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t column = 0; column < columns; column++) {
                    float sum = 0;
                    for (int64_t i = 0; i < inner; i++)
                        sum += to_float(static_cast<const T*>(a.data)[at(a, row, i)]) *
                               to_float(static_cast<const T*>(b.data)[at(b, i, column)]);
                    static_cast<To*>(c.data)[at(c, row, column)] = from_float<To>(sum);
                }
        });
    });
}

}  // namespace pfseg
