// Weights of any type as floats or as pairs of bfloat16, in vectors of one output's inputs.

#pragma once

#include "linear.hpp"
#include "nibbles.hpp"

namespace popxl {
namespace {

#ifdef POPXL_PANELS

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

// 16 elements of a float type, number `i` and those behind it; zeros where they are not there.
inline Floats some_floats(int64_t type, const char* from, int64_t i, __mmask16 some) {
    if (type == FLOAT32) return (Floats)_mm512_maskz_loadu_ps(some, from + 4 * i);
    Halves halves = (Halves)_mm256_maskz_loadu_epi16(some, from + 2 * i);
    return type == FLOAT16 ? from_float16(halves) : from_bfloat16(halves);
}

// What numbers of 4 bits are multiplied with, and what is added: the groups of one output.
struct Groups {
    const float *scale, *offset;
    int shift;  // of an input's number, to its group's

    Floats floats(Ints numbers, int64_t i) const {
        Floats values = (Floats)_mm512_cvtepi32_ps((__m512i)numbers);
        if (shift >= 4) return values * splat(scale[i >> shift]) + splat(offset[i >> shift]);
        __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        __m512i of_lane = _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(shift));
        auto spread = [&](const float* from) {
            return (Floats)_mm512_permutexvar_ps(of_lane, _mm512_loadu_ps(from + (i >> shift)));
        };
        return values * spread(scale) + spread(offset);
    }
};

// 16 weights of an output, number `i` and those behind it; the ones that are not there are zeros, or
// such that their activations are.
template <int64_t TYPE>
inline Floats weights(const char* w, int64_t i, __mmask16 some, const Groups& groups) {
    if constexpr (TYPE == INT8) {
        return from_int8((Bytes)_mm_maskz_loadu_epi8(some, w + i));
    } else if constexpr (TYPE == NIBBLES) {
        const char* from = w + nibble_bytes(i);
        if (some == 0xffff) return groups.floats(nibbles_in_order(from, LANES), i);
        return groups.floats(nibbles_in_order(from, __builtin_popcount(some)), i);
    } else {
        return some_floats(TYPE, w, i, some);
    }
}

// 32 of them as 16 pairs of bfloat16.
template <int64_t TYPE>
inline __m512i pairs(const char* w, int64_t i, __mmask32 some, const Groups& groups) {
    if constexpr (TYPE == BFLOAT16) return _mm512_maskz_loadu_epi16(some, w + 2 * i);
    Floats first = weights<TYPE>(w, i, some & 0xffff, groups);
    Floats second = weights<TYPE>(w, i + LANES, some >> LANES, groups);
    __m512i both = _mm512_castsi256_si512((__m256i)to_bfloat16(first));
    return _mm512_inserti64x4(both, (__m256i)to_bfloat16(second), 1);
}

#endif

}  // namespace
}  // namespace popxl
