// Products of many rows of bfloat16: weights are brought into panels, which stay in the first cache
// while all rows are multiplied with them.
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

// 32 weights as bfloat16, element `i` and those behind it. Where there are less than 32 the others
// are zeros, or times activations that are.
template <int64_t TYPE> struct Pairs;

__m512i joined(Floats first, Floats second) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

template <> struct Pairs<BFLOAT16> {
    static __m512i of(const Linear&, const char* w, int64_t i, __mmask32 some, const float*,
                      const float*) {
        return some == ~0u ? _mm512_loadu_si512(w + 2 * i) : _mm512_maskz_loadu_epi16(some, w + 2 * i);
    }
};

template <> struct Pairs<INT8> {
    static __m512i of(const Linear&, const char* w, int64_t i, __mmask32 some, const float*,
                      const float*) {
        __m256i bytes = _mm256_maskz_loadu_epi8(some, w + i);
        return joined(from_int8((Bytes)_mm256_castsi256_si128(bytes)),
                      from_int8((Bytes)_mm256_extracti128_si256(bytes, 1)));
    }
};

template <> struct Pairs<NIBBLES> {
    static __m512i of(const Linear& op, const char* w, int64_t i, __mmask32 some,
                      const float* scale, const float* offset) {
        const __m512i places = _mm512_set_epi64(
            0x0007000700070007, 0x0006000600060006, 0x0005000500050005, 0x0004000400040004,
            0x0003000300030003, 0x0002000200020002, 0x0001000100010001, 0);
        const __m512i shifts = _mm512_set1_epi64(0x000000040008000c);
        __m128i words = _mm_maskz_loadu_epi8(_pext_u32(some, 0x55555555), w + i / 2);
        __m512i four = _mm512_permutexvar_epi16(places, _mm512_castsi128_si512(words));
        __m512i numbers = _mm512_and_si512(_mm512_srlv_epi16(four, shifts), _mm512_set1_epi16(15));
        return joined(half(op, _mm512_castsi512_si256(numbers), i, scale, offset),
                      half(op, _mm512_extracti64x4_epi64(numbers, 1), i + LANES, scale, offset));
    }

    static Floats half(const Linear& op, __m256i numbers, int64_t i, const float* scale,
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
};

// Sums of M rows; `c` has OUTPUTS floats a row.
template <int M>
void micro(float* c, const char* x, int64_t x_step, const char* panel, int64_t pairs) {
    __m512 sums[M][VECTORS];
    for (int m = 0; m < M; m++)
        for (int v = 0; v < VECTORS; v++) sums[m][v] = _mm512_loadu_ps(c + m * OUTPUTS + v * LANES);
    for (int64_t p = 0; p < pairs; p++, panel += 4 * OUTPUTS) {
        if (p % 16 == 0)
            for (int m = 0; m < M; m++) __builtin_prefetch(x + (m + M) * x_step + 4 * p);
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

void micro_rows(int rows, float* c, const char* x, int64_t x_step, const char* panel, int64_t pairs) {
    switch (rows) {
        case 1: return micro<1>(c, x, x_step, panel, pairs);
        case 2: return micro<2>(c, x, x_step, panel, pairs);
        case 3: return micro<3>(c, x, x_step, panel, pairs);
        case 4: return micro<4>(c, x, x_step, panel, pairs);
        case 5: return micro<5>(c, x, x_step, panel, pairs);
        default: return micro<6>(c, x, x_step, panel, pairs);
    }
}

// The products of some outputs, at most OUTPUTS, with some rows: their sums in `c`, [row][OUTPUTS].
struct Panels {
    const Linear& op;
    const char *w, *x;  // of the first output, of the first row
    int64_t outputs, rows;
    const float *scale, *offset;  // of groups, [output][segment][groups, padded]
    int64_t groups;
    char* panel;
    float* c;

    void run() const {
        std::fill(c, c + rows * OUTPUTS, 0.0f);
        for (int64_t segment = 0; segment < op.segments; segment++)
            for (int64_t i = 0; i < op.in; i += 2 * PAIRS) {
                int64_t pairs = std::min<int64_t>((op.in - i) / 2, PAIRS);
                fill(segment, i, pairs);
                bool last = i + 2 * PAIRS >= op.in;
                const char* next = of_segment(segment, last ? OUTPUTS : 0);
                if (!last) next += (i + 2 * PAIRS) * weight_bytes(op) / op.in;
                multiply(x + 2 * (segment * op.x_segment + i), pairs, next);
            }
    }

    const char* of_segment(int64_t segment, int64_t output) const {
        return w + stride_bytes(op.w_type, segment * op.w_segment + output * op.w_output);
    }

    void fill(int64_t segment, int64_t i, int64_t pairs) const {
        switch (op.w_type) {
            case BFLOAT16: return fill_with<BFLOAT16>(segment, i, pairs);
            case INT8: return fill_with<INT8>(segment, i, pairs);
            case NIBBLES: return fill_with<NIBBLES>(segment, i, pairs);
        }
    }

    template <int64_t TYPE> void fill_with(int64_t segment, int64_t i, int64_t pairs) const {
        for (int64_t first = 0; first < OUTPUTS; first += LANES)
            for (int64_t p = 0; p < pairs; p += LANES) {
                int64_t count = std::min<int64_t>(LANES, pairs - p);
                __mmask32 some = ~0u >> (32 - 2 * count);
                __m512i v[LANES];
                for (int64_t n = 0; n < LANES; n++) {
                    int64_t output = std::min(first + n, outputs - 1);  // more are not used
                    int64_t place = (output * op.segments + segment) * groups;
                    v[n] = Pairs<TYPE>::of(op, of_segment(segment, output), i + 2 * p, some,
                                           scale + place, offset + place);
                }
                transpose(v);
                char* to = panel + 4 * (p * OUTPUTS + first);
                for (int64_t n = 0; n < count; n++)
                    _mm512_storeu_si512(to + 4 * n * OUTPUTS, v[n]);
            }
    }

    // Meanwhile the weights of the next panel are asked for.
    void multiply(const char* from, int64_t pairs, const char* next) const {
        int64_t x_step = 2 * op.x_row, step = stride_bytes(op.w_type, op.w_output);
        int64_t lines = 2 * PAIRS * weight_bytes(op) / op.in / BLOCK, asked = 0;
        for (int64_t row = 0; row < rows; row += MICRO_ROWS) {
            for (int n = 0; n < 8 && asked < lines * OUTPUTS; n++, asked++)
                __builtin_prefetch(next + asked / lines * step + asked % lines * BLOCK, 0, 2);
            micro_rows(std::min<int64_t>(rows - row, MICRO_ROWS), c + row * OUTPUTS,
                       from + row * x_step, x_step, panel, pairs);
        }
    }
};

#endif

}  // namespace
}  // namespace popxl
