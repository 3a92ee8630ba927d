// Some rows of activations times one output's weights of 8 or 4 bits, as whole numbers: exact until the
// sums of a span (int8) or of a block (4 bits) become floats.

#pragma once

#include "tiles.hpp"

namespace popxl {
namespace {

#ifdef POPXL_BYTES

template <int64_t TYPE, int DIGITS, int R> struct WholeTile {
    static constexpr int PARTS = TYPE == NIBBLES ? 2 : 1, SPAN = span_of(DIGITS);
    static constexpr int64_t BLOCK_FLOATS = block_vectors(TYPE, DIGITS) * R * LANES;
    static constexpr int64_t SPAN_FLOATS = span_vectors(TYPE) * R * LANES;
    static constexpr int64_t STEP = SPAN * BLOCK, STEP_FLOATS = SPAN * BLOCK_FLOATS + SPAN_FLOATS;
    typedef Floats Sums[R];
    static constexpr int TOGETHER = R > 2 || SPAN == 1 ? 1 : 4 / R;

    // Adds the products of the bytes `from` to `to` of a segment, whose first are at `w` and `x`; both
    // are whole spans, but for the last of all.
    static inline void range(Sums& total, const Prepared& p, const char* w, const float* x, int64_t from,
                      int64_t to, const OfGroups& groups, const char* next) {
        Sums sums;  // in registers, which what is referred to is not
        std::copy(total, total + R, sums);
        const float* of_span = x + p.blocks * BLOCK_FLOATS + from / STEP * SPAN_FLOATS;
        x += from / BLOCK * BLOCK_FLOATS;
        int64_t b = from;
        for (; b + STEP <= to; b += STEP, next += STEP) {
            for (int i = 0; i < SPAN; i++) {
                ask_ahead(next + i * BLOCK);
                ask_soon(w + b + i * BLOCK);
            }
            span(sums, w + b, x, of_span, groups, b, SPAN);
            x += SPAN * BLOCK_FLOATS, of_span += SPAN_FLOATS;
        }
        if (b < to) {
            alignas(64) char rest[STEP] = {};
            std::memcpy(rest, w + b, to - b);
            span(sums, rest, x, of_span, groups, b, (to - b + BLOCK - 1) / BLOCK);
        }
        std::copy(sums, sums + R, total);
    }

    // The blocks behind `there` have no scales.
    static inline void span(Sums& sums, const char* w, const float* x, const float* of_span,
                            const OfGroups& groups, int64_t b, int64_t there) {
        if constexpr (TYPE == INT8) {
            channel(sums, w, x, of_span);
        } else {
            Sums these = {};
            for (int i = 0; i < SPAN; i += TOGETHER)
                numbers(these, w + i * BLOCK, x + i * BLOCK_FLOATS, groups, b + i * BLOCK, there - i);
            for (int r = 0; r < R; r++) sums[r] += these[r] * load<Floats>(of_span + r * LANES);
        }
    }

    static inline void channel(Sums& sums, const char* w, const float* x, const float* of_span) {
        __m512i whole[DIGITS][R] = {};
        for (int i = 0; i < SPAN; i++) {
            __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(w + i * BLOCK),
                                               _mm512_set1_epi8(char(UNSIGNED)));
            for (int d = 0; d < DIGITS; d++)
                for (int r = 0; r < R; r++)
                    whole[d][r] = _mm512_dpbusd_epi32(
                        whole[d][r], weights,
                        _mm512_loadu_si512(x + i * BLOCK_FLOATS + (d * R + r) * LANES));
        }
        for (int r = 0; r < R; r++) {
            Ints all = (Ints)whole[0][r];
            for (int d = 1; d < DIGITS; d++) all = (all << 8) + (Ints)whole[d][r];
            all += load<Ints>(of_span + r * LANES);
            sums[r] += (Floats)_mm512_cvtepi32_ps((__m512i)all) *
                       load<Floats>(of_span + (R + r) * LANES);
        }
    }

    // TOGETHER blocks, so that many chains of instructions are under way. Those behind `there` have no
    // scales.
    static inline void numbers(Sums& sums, const char* w, const float* x, const OfGroups& groups,
                               int64_t b, int64_t there) {
        __m512i whole[TOGETHER][R] = {}, weights[TOGETHER][2];
        Floats factor[TOGETHER];
        for (int i = 0; i < TOGETHER; i++) {
            nibbles_as_bytes(w + i * BLOCK, weights[i]);
            factor[i] = i < there ? groups.scales.of_block(groups.scale, b + i * BLOCK) : Floats{};
        }
        for (int d = 0; d < DIGITS; d++)
            for (int part = 0; part < 2; part++)
                for (int i = 0; i < TOGETHER; i++)
                    for (int r = 0; r < R; r++) {
                        if (d && !part) whole[i][r] = _mm512_slli_epi32(whole[i][r], 8);
                        const float* digits = x + i * BLOCK_FLOATS + ((part * DIGITS + d) * R + r) * LANES;
                        whole[i][r] = _mm512_dpbusd_epi32(whole[i][r], weights[i][part],
                                                          _mm512_loadu_si512(digits));
                    }
        for (int i = 0; i < TOGETHER; i++)
            for (int r = 0; r < R; r++)
                sums[r] += (Floats)_mm512_cvtepi32_ps(whole[i][r]) * factor[i];
    }
};

#endif

}  // namespace
}  // namespace popxl
