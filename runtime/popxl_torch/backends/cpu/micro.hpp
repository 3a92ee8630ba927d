// Some rows of activations times a panel of weights, their sums in registers.

#pragma once

#include "elements.hpp"

namespace popxl {
namespace {

#ifdef POPXL_PANELS

constexpr int64_t OUTPUTS = 64;  // of a panel
constexpr int64_t DEEP = 128;    // words of an output in a panel: 32 KB
constexpr int MICRO_ROWS = 6;    // whose sums are in registers: 6 x 4 vectors
constexpr int VECTORS = OUTPUTS / LANES;

// Inputs that a word holds: two of bfloat16, or one float.
template <Arithmetic HOW> constexpr int64_t A_WORD = HOW == AS_PAIRS ? 2 : 1;

template <Arithmetic HOW> inline __m512 multiplied(__m512 sums, __m512 value, __m512 w) {
#ifdef POPXL_PAIRS
    if (HOW == AS_PAIRS) return _mm512_dpbf16_ps(sums, (__m512bh)value, (__m512bh)w);
#endif
    return _mm512_fmadd_ps(value, w, sums);
}

// Sums of M rows, FRESH or added to what is there; `c` has OUTPUTS floats a row, `x` words `x_step` bytes
// a row.
template <Arithmetic HOW, int M, bool FRESH>
void micro(float* c, const char* x, int64_t x_step, const char* panel, int64_t words) {
    __m512 sums[M][VECTORS];
    for (int m = 0; m < M; m++)
        for (int v = 0; v < VECTORS; v++)
            sums[m][v] = FRESH ? __m512{} : _mm512_loadu_ps(c + m * OUTPUTS + v * LANES);
    for (int64_t p = 0; p < words; p++, panel += 4 * OUTPUTS) {
        if (p % 16 == 0) {  // what the rows behind these need
            for (int m = 0; HOW == AS_PAIRS && m < M; m++)
                __builtin_prefetch(x + (m + M) * x_step + 4 * p);
            for (int i = 0; i < M / 2; i++)
                __builtin_prefetch(c + M * OUTPUTS + (p / 16 * (M / 2) + i) * LANES);
        }
        __m512 w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = _mm512_loadu_ps(panel + 64 * v);
        for (int m = 0; m < M; m++) {
            __m512 value = _mm512_set1_ps(load<float>(x + m * x_step + 4 * p));
            for (int v = 0; v < VECTORS; v++) sums[m][v] = multiplied<HOW>(sums[m][v], value, w[v]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(c + m * OUTPUTS + v * LANES, sums[m][v]);
}

// Up to MICRO_ROWS rows.
template <Arithmetic HOW, bool FRESH>
void micro_rows(int64_t rows, float* c, const char* x, int64_t x_step, const char* panel,
                int64_t words) {
    switch (rows) {
        case 1: return micro<HOW, 1, FRESH>(c, x, x_step, panel, words);
        case 2: return micro<HOW, 2, FRESH>(c, x, x_step, panel, words);
        case 3: return micro<HOW, 3, FRESH>(c, x, x_step, panel, words);
        case 4: return micro<HOW, 4, FRESH>(c, x, x_step, panel, words);
        case 5: return micro<HOW, 5, FRESH>(c, x, x_step, panel, words);
        default: return micro<HOW, 6, FRESH>(c, x, x_step, panel, words);
    }
}

// `count` elements of some rows as floats; rows are `step` floats apart, and as many bytes `x_step`.
template <int64_t TYPE>
void bring_floats(float* to, int64_t step, const char* x, int64_t x_step, int64_t rows, int64_t count) {
    for (int64_t row = 0; row < rows; row++, x += x_step, to += step) {
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) store(to + i, load_floats(x + i * size_of(TYPE), TYPE));
        if (i < count) store(to + i, some_floats(TYPE, x, i, 0xffff >> (i + LANES - count)));
    }
}

#endif

}  // namespace
}  // namespace popxl
