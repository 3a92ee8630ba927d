// Products of many rows by pairs of bfloat16: weights are brought into panels, which stay in the first
// cache while all rows are multiplied with them.
//
// With activations of float16, these and the weights are sums of two terms of bfloat16, and three of
// the four products are taken: what the fourth would add is 2^-18 of the largest.
//
// Each result is one chain of sums over pairs of inputs, whatever the number of rows.

#pragma once

#include "linear.hpp"

namespace popxl {
namespace {

#ifdef __AVX512BF16__

constexpr int64_t OUTPUTS = 64;    // of a panel
constexpr int64_t PAIRS = 128;     // of inputs, of a panel: 32 KB
constexpr int64_t AT_ONCE = 512;   // rows whose sums are kept
constexpr int MICRO_ROWS = 6;      // whose sums are in registers: 6 x 4 vectors
constexpr int SPLIT_ROWS = 4;      // the same, where there are two terms
constexpr int VECTORS = OUTPUTS / LANES;

// 16 vectors of 16 words as columns of a matrix.
void transpose(__m512i (&v)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        v[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        v[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}

__m512i joined(Floats first, Floats second) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

// What two vectors of floats as bfloat16 leave over, as such.
__m512i left_over(Floats first, Floats second, __m512i taken) {
    return joined(first - from_bfloat16((Halves)_mm512_castsi512_si256(taken)),
                  second - from_bfloat16((Halves)_mm512_extracti64x4_epi64(taken, 1)));
}

// 32 elements, number `i` and those behind it; the ones that are not there are zeros, or such that
// their activations are.
struct Elements {
    Floats first, second;
};

Elements of_float16(const char* from, int64_t i, __mmask32 some) {
    __m512i halves = _mm512_maskz_loadu_epi16(some, from + 2 * i);
    return {from_float16((Halves)_mm512_castsi512_si256(halves)),
            from_float16((Halves)_mm512_extracti64x4_epi64(halves, 1))};
}

template <int64_t TYPE>
Elements elements(const Linear& op, const char* w, int64_t i, __mmask32 some, const float* scale,
                  const float* offset);

template <>
Elements elements<FLOAT16>(const Linear&, const char* w, int64_t i, __mmask32 some, const float*,
                           const float*) {
    return of_float16(w, i, some);
}

template <>
Elements elements<INT8>(const Linear&, const char* w, int64_t i, __mmask32 some, const float*,
                        const float*) {
    __m256i bytes = _mm256_maskz_loadu_epi8(some, w + i);
    return {from_int8((Bytes)_mm256_castsi256_si128(bytes)),
            from_int8((Bytes)_mm256_extracti128_si256(bytes, 1))};
}

Floats of_numbers(const Linear& op, __m256i numbers, int64_t i, const float* scale,
                  const float* offset) {
    Floats values = (Floats)_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(numbers));
    int shift = __builtin_ctzll(op.group);
    if (op.group >= LANES) return values * splat(scale[i >> shift]) + splat(offset[i >> shift]);
    __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i of_lane = _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(shift));
    auto spread = [&](const float* from) {
        return (Floats)_mm512_permutexvar_ps(of_lane, _mm512_loadu_ps(from + (i >> shift)));
    };
    return values * spread(scale) + spread(offset);
}

template <>
Elements elements<NIBBLES>(const Linear& op, const char* w, int64_t i, __mmask32 some,
                           const float* scale, const float* offset) {
    const __m512i places = _mm512_set_epi64(
        0x0007000700070007, 0x0006000600060006, 0x0005000500050005, 0x0004000400040004,
        0x0003000300030003, 0x0002000200020002, 0x0001000100010001, 0);
    const __m512i shifts = _mm512_set1_epi64(0x000000040008000c);
    __m128i words = _mm_maskz_loadu_epi8(_pext_u32(some, 0x55555555), w + i / 2);
    __m512i four = _mm512_permutexvar_epi16(places, _mm512_castsi128_si512(words));
    __m512i numbers = _mm512_and_si512(_mm512_srlv_epi16(four, shifts), _mm512_set1_epi16(15));
    return {of_numbers(op, _mm512_castsi512_si256(numbers), i, scale, offset),
            of_numbers(op, _mm512_extracti64x4_epi64(numbers, 1), i + LANES, scale, offset)};
}

// Sums of M rows, FRESH or added to what is there; `c` has OUTPUTS floats a row.
template <int M, bool FRESH>
void micro(float* c, const char* x, int64_t x_step, const char* panel, int64_t pairs) {
    __m512 sums[M][VECTORS];
    for (int m = 0; m < M; m++)
        for (int v = 0; v < VECTORS; v++)
            sums[m][v] = FRESH ? __m512{} : _mm512_loadu_ps(c + m * OUTPUTS + v * LANES);
    for (int64_t p = 0; p < pairs; p++, panel += 4 * OUTPUTS) {
        if (p % 16 == 0) {  // what the rows behind these need
            for (int m = 0; m < M; m++) __builtin_prefetch(x + (m + M) * x_step + 4 * p);
            for (int i = 0; i < M / 2; i++)
                __builtin_prefetch(c + M * OUTPUTS + (p / 16 * (M / 2) + i) * LANES);
        }
        __m512bh w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = (__m512bh)_mm512_loadu_si512(panel + 64 * v);
        for (int m = 0; m < M; m++) {
            __m512bh value = (__m512bh)_mm512_set1_epi32(load<int32_t>(x + m * x_step + 4 * p));
            for (int v = 0; v < VECTORS; v++) sums[m][v] = _mm512_dpbf16_ps(sums[m][v], value, w[v]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(c + m * OUTPUTS + v * LANES, sums[m][v]);
}

// The same with two terms: of activations [row][term][PAIRS], of weights in two panels.
template <int M> void micro_split(float* c, const uint32_t* x, const char* panel, int64_t pairs) {
    __m512 sums[M][VECTORS];
    const char* rest = panel + 4 * OUTPUTS * PAIRS;
    for (int m = 0; m < M; m++)
        for (int v = 0; v < VECTORS; v++) sums[m][v] = _mm512_loadu_ps(c + m * OUTPUTS + v * LANES);
    for (int64_t p = 0; p < pairs; p++, panel += 4 * OUTPUTS, rest += 4 * OUTPUTS) {
        __m512bh w[VECTORS], small[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            w[v] = (__m512bh)_mm512_loadu_si512(panel + 64 * v);
            small[v] = (__m512bh)_mm512_loadu_si512(rest + 64 * v);
        }
        for (int m = 0; m < M; m++) {
            __m512bh value = (__m512bh)_mm512_set1_epi32(x[2 * m * PAIRS + p]);
            __m512bh left = (__m512bh)_mm512_set1_epi32(x[(2 * m + 1) * PAIRS + p]);
            for (int v = 0; v < VECTORS; v++) sums[m][v] = _mm512_dpbf16_ps(sums[m][v], left, w[v]);
            for (int v = 0; v < VECTORS; v++)
                sums[m][v] = _mm512_dpbf16_ps(sums[m][v], value, small[v]);
            for (int v = 0; v < VECTORS; v++)
                sums[m][v] = _mm512_dpbf16_ps(sums[m][v], value, w[v]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(c + m * OUTPUTS + v * LANES, sums[m][v]);
}

// Up to MICRO_ROWS rows.
template <bool FRESH = false>
void micro_rows(int64_t rows, float* c, const char* x, int64_t x_step, const char* panel,
                int64_t pairs) {
    switch (rows) {
        case 1: return micro<1, FRESH>(c, x, x_step, panel, pairs);
        case 2: return micro<2, FRESH>(c, x, x_step, panel, pairs);
        case 3: return micro<3, FRESH>(c, x, x_step, panel, pairs);
        case 4: return micro<4, FRESH>(c, x, x_step, panel, pairs);
        case 5: return micro<5, FRESH>(c, x, x_step, panel, pairs);
        default: return micro<6, FRESH>(c, x, x_step, panel, pairs);
    }
}

// Up to SPLIT_ROWS rows of float16.
void split_rows(int64_t rows, float* c, const char* x, int64_t x_step, const char* panel,
                int64_t pairs) {
    alignas(64) uint32_t terms[SPLIT_ROWS][2][PAIRS];
    for (int64_t row = 0; row < rows; row++)
        for (int64_t p = 0; p < pairs; p += LANES) {
            int64_t count = std::min<int64_t>(LANES, pairs - p);
            auto [first, second] = of_float16(x + row * x_step, 2 * p, ~0u >> (32 - 2 * count));
            __m512i taken = joined(first, second);
            _mm512_store_si512(&terms[row][0][p], taken);
            _mm512_store_si512(&terms[row][1][p], left_over(first, second, taken));
        }
    switch (rows) {
        case 1: return micro_split<1>(c, terms[0][0], panel, pairs);
        case 2: return micro_split<2>(c, terms[0][0], panel, pairs);
        case 3: return micro_split<3>(c, terms[0][0], panel, pairs);
        default: return micro_split<4>(c, terms[0][0], panel, pairs);
    }
}

// The products of some outputs, at most OUTPUTS, with some rows: their sums in `c`, [row][OUTPUTS].
struct Panels {
    const Linear& op;
    const char *w, *x;  // of the first output, of the first row
    int64_t outputs, rows;
    const float *scale, *offset;  // of groups, [output][segment][groups, padded]
    int64_t groups;
    char* panel;  // one, or two for two terms
    float* c;

    void run() const {
        if (split()) std::fill(c, c + rows * OUTPUTS, 0.0f);
        for (int64_t segment = 0; segment < op.segments; segment++)
            for (int64_t i = 0; i < op.in; i += 2 * PAIRS) {
                int64_t pairs = std::min<int64_t>((op.in - i) / 2, PAIRS);
                fill(segment, i, pairs);
                bool last = i + 2 * PAIRS >= op.in;
                const char* next = of_segment(segment, last ? OUTPUTS : 0);
                if (!last) next += (i + 2 * PAIRS) * weight_bytes(op) / op.in;
                multiply(x + 2 * (segment * op.x_segment + i), pairs, next, !segment && !i);
            }
    }

    const char* of_segment(int64_t segment, int64_t output) const {
        return w + stride_bytes(op.w_type, segment * op.w_segment + output * op.w_output);
    }

    bool split() const { return op.x_type == FLOAT16; }

    void fill(int64_t segment, int64_t i, int64_t pairs) const {
        switch (op.w_type) {
            case BFLOAT16: return fill_with<BFLOAT16>(segment, i, pairs);
            case FLOAT16: return fill_with<FLOAT16>(segment, i, pairs);
            case INT8: return fill_with<INT8>(segment, i, pairs);
            case NIBBLES: return fill_with<NIBBLES>(segment, i, pairs);
        }
    }

    template <int64_t TYPE> void fill_with(int64_t segment, int64_t i, int64_t pairs) const {
        for (int64_t first = 0; first < OUTPUTS; first += LANES)
            for (int64_t p = 0; p < pairs; p += LANES) {
                int64_t count = std::min<int64_t>(LANES, pairs - p);
                __mmask32 some = ~0u >> (32 - 2 * count);
                __m512i v[LANES], rest[LANES];
                for (int64_t n = 0; n < LANES; n++) {
                    int64_t output = std::min(first + n, outputs - 1);  // more are not used
                    int64_t place = (output * op.segments + segment) * groups;
                    const char* from = of_segment(segment, output);
                    if constexpr (TYPE == BFLOAT16) {
                        v[n] = _mm512_maskz_loadu_epi16(some, from + 2 * (i + 2 * p));
                    } else {
                        auto [one, two] = elements<TYPE>(op, from, i + 2 * p, some, scale + place,
                                                         offset + place);
                        v[n] = joined(one, two);
                        if (split()) rest[n] = left_over(one, two, v[n]);
                    }
                }
                char* to = panel + 4 * (p * OUTPUTS + first);
                put(v, to, count);
                if (TYPE != BFLOAT16 && split()) put(rest, to + 4 * OUTPUTS * PAIRS, count);
            }
    }

    static void put(__m512i (&v)[LANES], char* to, int64_t count) {
        transpose(v);
        for (int64_t n = 0; n < count; n++) _mm512_storeu_si512(to + 4 * n * OUTPUTS, v[n]);
    }

    // Meanwhile the weights of the next panel are asked for.
    void multiply(const char* from, int64_t pairs, const char* next, bool fresh) const {
        int64_t x_step = 2 * op.x_row, step = stride_bytes(op.w_type, op.w_output);
        int64_t lines = 2 * PAIRS * weight_bytes(op) / op.in / BLOCK, asked = 0;
        int64_t at_once = split() ? SPLIT_ROWS : MICRO_ROWS;
        for (int64_t row = 0; row < rows; row += at_once) {
            for (int n = 0; n < 8 && asked < lines * OUTPUTS; n++, asked++)
                __builtin_prefetch(next + asked / lines * step + asked % lines * BLOCK, 0, 2);
            auto* some_rows = split() ? split_rows : fresh ? micro_rows<true> : micro_rows<false>;
            some_rows(std::min(rows - row, at_once), c + row * OUTPUTS, from + row * x_step, x_step,
                      panel, pairs);
        }
    }
};

#endif

}  // namespace
}  // namespace popxl
