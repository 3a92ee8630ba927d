// Activations as whole numbers, for weights of 8 and 4 bits.
//
// The activations of a few blocks, a span, become whole numbers of 16 bits (of 22 for float32) that
// share a scale, and these two or three digits of 8 bits, -128 to 127, the highest first. A digit times
// a weight of 8 bits without sign, four of them added, is what one instruction does.

#pragma once

#include "linear.hpp"
#include "nibbles.hpp"

namespace popxl {
namespace {

// Blocks whose activations share a scale: as many as sums of 32 bits have room for.
constexpr int span_of(int digits) { return digits == 2 ? 4 : 1; }

// Vectors of 64 bytes that a row's block is kept as: digits, [part of the block][digit].
constexpr int block_vectors(int64_t type, int digits) { return (type == NIBBLES ? 2 : 1) * digits; }

// And its span: for int8 what its weights' missing sign makes too much, and the scale in every lane.
constexpr int span_vectors(int64_t type) { return (type == INT8) + 1; }

#ifdef POPXL_BYTES

constexpr int32_t UNSIGNED = 128;  // added to weights of 8 bits, which the instruction takes as such

// The largest whole number whose digits are of 8 bits, and whose sums fit 32.
constexpr float largest_whole(int digits) { return digits == 2 ? 32639 : 1 << 21; }

// The lowest digit, and what is left without it.
inline void take_digit(Ints& rest, Ints& digit) {
    digit = (rest << 24) >> 24;
    rest = (rest - digit) >> 8;
}

inline __m128i as_bytes(Ints values) { return _mm512_cvtepi32_epi8((__m512i)values); }

// What `count` floats are divided by; NaN where one is not finite.
float scale_of(const float* from, int64_t count, float largest) {
    Floats most = {};
    bool finite = true;
    for (int64_t i = 0; i < count; i += LANES) {
        Floats size = (Floats)_mm512_abs_ps((__m512)load<Floats>(from + i));
        most = greatest(most, size);
        finite &= _mm512_cmp_ps_mask((__m512)size, _mm512_set1_ps(INFINITY), _CMP_LT_OQ) == 0xffff;
    }
    return finite ? _mm512_reduce_max_ps((__m512)most) / largest : NAN;
}

// The digits of a span go to `to`, what belongs to the whole of it to `of_span`; `step` floats from
// one vector to the next.
template <int64_t TYPE, int DIGITS>
void order_span(float* to, float* of_span, int64_t step, const float* from) {
    constexpr int COUNT = elements_per_block(TYPE), SPAN = span_of(DIGITS);
    float scale = scale_of(from, SPAN * COUNT, largest_whole(DIGITS));
    float factor = scale >= 1e-37f ? 1 / scale : 0;  // smaller ones have no inverse
    Ints sums = {};
    for (int block = 0; block < SPAN; block++, from += COUNT) {
        alignas(64) char digits[DIGITS][COUNT];
        alignas(64) int32_t whole[COUNT];
        for (int i = 0; i < COUNT; i += LANES) {
            Ints rest = (Ints)_mm512_cvtps_epi32((__m512)(load<Floats>(from + i) * factor)), digit;
            store(whole + i, rest);
            for (int d = DIGITS - 1; d >= 0; d--) {
                take_digit(rest, digit);
                _mm_store_si128((__m128i*)(digits[d] + i), as_bytes(digit));
            }
        }
        for (int d = 0; d < DIGITS; d++, to += step) {
            if constexpr (TYPE == INT8) {
                store(to, load<Words>(digits[d]));
            } else {
                for (int half = 0; half < 2; half++)
                    as_nibbles_lie(digits[d] + 64 * half, (char*)to + 32 * half,
                                   (char*)(to + DIGITS * step) + 32 * half);
            }
        }
        if constexpr (TYPE == NIBBLES) to += DIGITS * step;
        if constexpr (TYPE == INT8)
            for (int lane = 0; lane < LANES; lane++)
                for (int i = 0; i < 4; i++) sums[lane] += whole[4 * lane + i];
    }
    if constexpr (TYPE == INT8) {
        store(of_span, sums * -UNSIGNED);
        of_span += step;
    }
    store(of_span, splat(factor || scale != scale ? scale : 0));
}

template <int64_t TYPE, int DIGITS>
void order_spans(float* to, int64_t step, const float* from, int64_t blocks) {
    constexpr int SPAN = span_of(DIGITS);
    float* of_span = to + blocks * block_vectors(TYPE, DIGITS) * step;
    for (int64_t first = 0; first < blocks; first += SPAN) {
        order_span<TYPE, DIGITS>(to, of_span, step, from);
        to += SPAN * block_vectors(TYPE, DIGITS) * step;
        of_span += span_vectors(TYPE) * step;
        from += SPAN * elements_per_block(TYPE);
    }
}

void order_whole_numbers(int64_t type, int digits, float* to, int64_t step, const float* from,
                         int64_t blocks) {
    if (type == INT8)
        return digits == 2 ? order_spans<INT8, 2>(to, step, from, blocks)
                           : order_spans<INT8, 3>(to, step, from, blocks);
    digits == 2 ? order_spans<NIBBLES, 2>(to, step, from, blocks)
                : order_spans<NIBBLES, 3>(to, step, from, blocks);
}

#endif

}  // namespace
}  // namespace popxl
