// Some rows of activations times one output's weights of 8 or 4 bits, as whole numbers: exact until the
// sums of a span (int8) or of a block (4 bits) become floats.

#pragma once

#include "tiles.hpp"

namespace popxl {
namespace {

#ifdef POPXL_BYTES

template <int64_t TYPE, int DIGITS, int R> struct WholeTile {
    static constexpr int PARTS = TYPE == NIBBLES ? 2 : 1, SPAN = span_of(DIGITS);
    static constexpr int64_t SPAN_BYTES = SPAN * BLOCK;
    static constexpr int64_t BLOCK_FLOATS = block_vectors(TYPE, DIGITS) * R * LANES;
    static constexpr int64_t SPAN_FLOATS = span_vectors(TYPE) * R * LANES;
    typedef Floats Sums[R];

    Sums total;

    // `w` of the output; `x` as Prepared has it for these R rows.
    void run(const Linear& op, const Prepared& p, const char* w, const float* x, int64_t output,
             const Scales& scales) {
        for (int r = 0; r < R; r++) total[r] = Floats{};
        for (int64_t segment = 0; segment < op.segments; segment++) {
            Sums sums = {};
            int64_t first = output * scales.per_output + segment * scales.groups;
            spans(sums, weight_bytes(op), w, x, x + p.blocks * BLOCK_FLOATS, scales, first);
            if constexpr (TYPE == NIBBLES)
                add_offsets<R>(sums, p, x + p.of_blocks * R * LANES, scales.offset + first);
            Floats scale = TYPE == INT8 ? channel_scale(op, output, segment) : splat(1);
            for (int r = 0; r < R; r++) total[r] += scale * sums[r];
            w += stride_bytes(TYPE, op.w_segment);
            x += p.per_segment * R * LANES;
        }
    }

    static inline void spans(Sums& sums, int64_t bytes, const char* w, const float* x,
                             const float* of_span, const Scales& scales, int64_t first) {
        const float* scale = scales.scale + first;
        int64_t b = 0;
        for (; b + SPAN_BYTES <= bytes; b += SPAN_BYTES) {
            for (int i = 0; i < SPAN; i++) __builtin_prefetch(w + AHEAD + i * BLOCK, 0, ONCE);
            span(sums, w, x, of_span, scales, scale, b, SPAN);
            w += SPAN_BYTES, x += SPAN * BLOCK_FLOATS, of_span += SPAN_FLOATS;
        }
        if (b < bytes) {
            alignas(64) char rest[SPAN_BYTES] = {};
            std::memcpy(rest, w, bytes - b);
            span(sums, rest, x, of_span, scales, scale, b, (bytes - b + BLOCK - 1) / BLOCK);
        }
    }

    // The blocks behind `there` have no scales.
    static inline void span(Sums& sums, const char* w, const float* x, const float* of_span,
                            const Scales& scales, const float* scale, int64_t b, int64_t there) {
        if constexpr (TYPE == INT8) {
            channel(sums, w, x, of_span);
        } else {
            Sums these = {};
            for (int i = 0; i < SPAN; i++) {
                Floats factor = i < there ? scales.of_block(scale, b + i * BLOCK) : Floats{};
                groups(these, w + i * BLOCK, x + i * BLOCK_FLOATS, factor);
            }
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

    static inline void groups(Sums& sums, const char* w, const float* x, Floats factor) {
        const __m512i nibble = _mm512_set1_epi8(15);
        __m512i words = _mm512_loadu_si512(w);
        __m512i weights[2] = {_mm512_and_si512(words, nibble),
                              _mm512_and_si512(_mm512_srli_epi16(words, 4), nibble)};
        for (int r = 0; r < R; r++) {
            __m512i whole = _mm512_setzero_si512();
            for (int d = 0; d < DIGITS; d++) {
                if (d) whole = _mm512_slli_epi32(whole, 8);
                for (int part = 0; part < 2; part++)
                    whole = _mm512_dpbusd_epi32(
                        whole, weights[part],
                        _mm512_loadu_si512(x + ((part * DIGITS + d) * R + r) * LANES));
            }
            sums[r] += (Floats)_mm512_cvtepi32_ps(whole) * factor;
        }
    }
};

#endif

}  // namespace
}  // namespace popxl
