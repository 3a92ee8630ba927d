// Some rows of activations times some outputs' weights of 8 or 4 bits, as whole numbers: exact until
// the sums of a span (int8) or of a block (4 bits) become floats.

#pragma once

#include "tiles.hpp"

namespace popxl {
namespace {

#ifdef POPXL_BYTES

template <int64_t TYPE, int DIGITS, int R, int O> struct WholeTile {
    static constexpr int PARTS = TYPE == NIBBLES ? 2 : 1, SPAN = span_of(DIGITS);
    static constexpr int64_t SPAN_BYTES = SPAN * BLOCK;
    static constexpr int64_t BLOCK_FLOATS = block_vectors(TYPE, DIGITS) * R * LANES;
    static constexpr int64_t SPAN_FLOATS = span_vectors(TYPE) * R * LANES;
    typedef Floats Sums[R][O];

    Sums total;

    // `w` of the first output; `x` as Prepared has it for these R rows.
    void run(const Linear& op, const Prepared& p, const char* w, const float* x, int64_t output,
             const Scales& scales) {
        for (int r = 0; r < R; r++)
            for (int o = 0; o < O; o++) total[r][o] = Floats{};
        int64_t segment_step = stride_bytes(TYPE, op.w_segment);
        for (int64_t segment = 0; segment < op.segments; segment++, w += segment_step) {
            Sums sums = {};
            int64_t first = output * scales.per_output + segment * scales.groups;
            spans(sums, op, w, x, x + p.blocks * BLOCK_FLOATS, scales, first);
            x += p.of_blocks * R * LANES;
            if constexpr (TYPE == NIBBLES) {
                offsets(sums, p, x, scales, first);
                x += p.sums * R * LANES;
            }
            for (int o = 0; o < O; o++) {
                Floats scale = TYPE == INT8 ? channel_scale(op, output + o, segment) : splat(1);
                for (int r = 0; r < R; r++) total[r][o] += scale * sums[r][o];
            }
        }
    }

    static inline void spans(Sums& sums, const Linear& op, const char* w, const float* x,
                             const float* of_span, const Scales& scales, int64_t first) {
        int64_t bytes = weight_bytes(op), step = stride_bytes(TYPE, op.w_output);
        const float* scale = scales.scale + first;
        Ahead ahead(w, O * bytes);
        int64_t b = 0;
        for (; b + SPAN_BYTES <= bytes; b += SPAN_BYTES) {
            ahead.ask(O * SPAN);
            span(sums, w, step, x, of_span, scales, scale, b, SPAN);
            w += SPAN_BYTES, x += SPAN * BLOCK_FLOATS, of_span += SPAN_FLOATS;
        }
        if (b < bytes) {
            alignas(64) char rest[O][SPAN_BYTES] = {};
            for (int o = 0; o < O; o++) std::memcpy(rest[o], w + o * step, bytes - b);
            span(sums, rest[0], SPAN_BYTES, x, of_span, scales, scale, b,
                 (bytes - b + BLOCK - 1) / BLOCK);
        }
    }

    // The blocks behind `there` have no scales.
    static inline void span(Sums& sums, const char* w, int64_t step, const float* x,
                            const float* of_span, const Scales& scales, const float* scale,
                            int64_t b, int64_t there) {
        if constexpr (TYPE == INT8) {
            channels(sums, w, step, x, of_span);
        } else {
            Sums these = {};
            for (int i = 0; i < SPAN; i++) {
                Floats factor[O] = {};
                if (i < there)
                    for (int o = 0; o < O; o++)
                        factor[o] = scales.of_block(scale + o * scales.per_output, b + i * BLOCK);
                groups(these, w + i * BLOCK, step, x + i * BLOCK_FLOATS, factor);
            }
            for (int r = 0; r < R; r++) {
                Floats factor = load<Floats>(of_span + r * LANES);
                for (int o = 0; o < O; o++) sums[r][o] += these[r][o] * factor;
            }
        }
    }

    static inline void channels(Sums& sums, const char* w, int64_t step, const float* x,
                                const float* of_span) {
        __m512i whole[DIGITS][R][O] = {};
        for (int i = 0; i < SPAN; i++) {
            __m512i weights[O];
            for (int o = 0; o < O; o++)
                weights[o] = _mm512_xor_si512(_mm512_loadu_si512(w + o * step + i * BLOCK),
                                              _mm512_set1_epi8(char(UNSIGNED)));
            for (int d = 0; d < DIGITS; d++)
                for (int r = 0; r < R; r++) {
                    __m512i digits =
                        _mm512_loadu_si512(x + i * BLOCK_FLOATS + (d * R + r) * LANES);
                    for (int o = 0; o < O; o++)
                        whole[d][r][o] = _mm512_dpbusd_epi32(whole[d][r][o], weights[o], digits);
                }
        }
        for (int r = 0; r < R; r++) {
            Ints too_much = load<Ints>(of_span + r * LANES);
            Floats scale = load<Floats>(of_span + (R + r) * LANES);
            for (int o = 0; o < O; o++) {
                Ints all = (Ints)whole[0][r][o];
                for (int d = 1; d < DIGITS; d++) all = (all << 8) + (Ints)whole[d][r][o];
                sums[r][o] += (Floats)_mm512_cvtepi32_ps((__m512i)(all + too_much)) * scale;
            }
        }
    }

    static inline void groups(Sums& sums, const char* w, int64_t step, const float* x,
                              const Floats (&factor)[O]) {
        const __m512i nibble = _mm512_set1_epi8(15);
        __m512i weights[PARTS][O];
        for (int o = 0; o < O; o++) {
            __m512i words = _mm512_loadu_si512(w + o * step);
            weights[0][o] = _mm512_and_si512(words, nibble);
            weights[PARTS - 1][o] = _mm512_and_si512(_mm512_srli_epi16(words, 4), nibble);
        }
        for (int r = 0; r < R; r++) {
            __m512i whole[O] = {};
            for (int d = 0; d < DIGITS; d++)
                for (int part = 0; part < PARTS; part++) {
                    __m512i digits = _mm512_loadu_si512(x + ((part * DIGITS + d) * R + r) * LANES);
                    for (int o = 0; o < O; o++) {
                        if (d && !part) whole[o] = _mm512_slli_epi32(whole[o], 8);
                        whole[o] = _mm512_dpbusd_epi32(whole[o], weights[part][o], digits);
                    }
                }
            for (int o = 0; o < O; o++)
                sums[r][o] += (Floats)_mm512_cvtepi32_ps(whole[o]) * factor[o];
        }
    }

    static void offsets(Sums& sums, const Prepared& p, const float* x, const Scales& scales,
                        int64_t first) {
        for (int64_t g = 0; g < p.sums; g++, x += R * LANES)
            for (int o = 0; o < O; o++) {
                Floats values =
                    load<Floats>(scales.offset + first + o * scales.per_output + g * LANES);
                for (int r = 0; r < R; r++) sums[r][o] += values * load<Floats>(x + r * LANES);
            }
    }
};

#endif

}  // namespace
}  // namespace popxl
