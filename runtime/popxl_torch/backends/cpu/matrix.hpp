// Products of many rows: weights are brought into panels, which stay in the first cache while all rows
// are multiplied with them, as pairs of bfloat16 where that is quicker and all are of bfloat16, else as
// floats.
//
// Each result is one chain of sums over inputs, or pairs of them, whatever the number of rows.

#pragma once

#include "micro.hpp"

namespace popxl {
namespace {

#ifdef POPXL_PANELS

constexpr int64_t AT_ONCE = 512;  // rows whose sums are kept

// The products of some outputs, at most OUTPUTS, with some rows: their sums in `c`, [row][OUTPUTS].
template <Arithmetic HOW> struct Panels {
    static constexpr int64_t INPUTS = DEEP * A_WORD<HOW>;  // of a panel

    const Linear& op;
    const char *w, *x;  // of the first output, of the first row
    int64_t outputs, rows;
    const float *scale, *offset;  // of groups, [output][segment][groups, padded]
    int64_t groups;
    char* panel;
    float *floats, *c;  // `floats`: [MICRO_ROWS][DEEP]

    void run() const {
        for (int64_t segment = 0; segment < op.segments; segment++)
            for (int64_t i = 0; i < op.inputs; i += INPUTS) {
                int64_t count = std::min(op.inputs - i, INPUTS);
                fill(segment, i, count);
                bool last = i + INPUTS >= op.inputs;
                const char* next = of_segment(segment, last ? OUTPUTS : 0);
                if (!last) next += of_inputs(i + INPUTS);
                const char* from = x + (segment * op.x_segment + i) * size_of(op.x_type);
                if (segment || i) {
                    multiply<false>(from, count, next);
                } else {
                    multiply<true>(from, count, next);
                }
            }
    }

    const char* of_segment(int64_t segment, int64_t output) const {
        return w + stride_bytes(op.w_type, segment * op.w_segment + output * op.w_output);
    }

    // Bytes from an output's first weight to that of an input; all inputs of a word of four lie together.
    int64_t of_inputs(int64_t i) const {
        return is_row_major(op) ? stride_bytes(op.w_type, i * op.w_input) : i * weight_bytes(op) / op.inputs;
    }

    void fill(int64_t segment, int64_t i, int64_t count) const {
        switch (op.w_type) {
            case FLOAT32: return fill_with<FLOAT32>(segment, i, count);
            case FLOAT16: return fill_with<FLOAT16>(segment, i, count);
            case BFLOAT16: return fill_with<BFLOAT16>(segment, i, count);
            case INT8: return fill_with<INT8>(segment, i, count);
            case NIBBLES: return fill_with<NIBBLES>(segment, i, count);
        }
    }

    template <int64_t TYPE> void fill_with(int64_t segment, int64_t i, int64_t count) const {
        if (TYPE != NIBBLES && is_row_major(op)) return fill_row_major<TYPE>(segment, i, count);
        constexpr int64_t TOGETHER = LANES * A_WORD<HOW>;
        int shift = TYPE == NIBBLES ? __builtin_ctzll(op.group) : 0;
        for (int64_t first = 0; first < OUTPUTS; first += LANES)
            for (int64_t j = 0; j < count; j += TOGETHER) {
                int64_t some = std::min(TOGETHER, count - j);
                __m512i v[LANES];
                for (int64_t n = 0; n < LANES; n++) {
                    int64_t output = std::min(first + n, outputs - 1);  // more are not used
                    int64_t place = (output * op.segments + segment) * groups;
                    v[n] = words<TYPE>(of_segment(segment, output), i + j, some,
                                       Groups{scale + place, offset + place, shift});
                }
                transpose(v);
                char* to = panel + 4 * (j / A_WORD<HOW> * OUTPUTS + first);
                for (int64_t n = 0; n < some / A_WORD<HOW>; n++)
                    _mm512_storeu_si512(to + 4 * n * OUTPUTS, v[n]);
            }
    }

    // The same of a row-major weight, whose outputs lie as a panel has them.
    template <int64_t TYPE> void fill_row_major(int64_t segment, int64_t i, int64_t count) const {
        const Groups none{nullptr, nullptr, 0};
        const char* from = of_segment(segment, 0);
        int64_t step = stride_bytes(TYPE, op.w_input);
        for (int64_t j = 0; j < count; j += A_WORD<HOW>)
            for (int64_t first = 0; first < OUTPUTS; first += LANES) {
                int64_t there = std::clamp<int64_t>(outputs - first, 0, LANES);
                const char* at = from + (i + j) * step;
                Floats word = weights<TYPE>(at, first, 0xffff >> (LANES - there), none);
                if constexpr (HOW == AS_PAIRS)
                    word = pairs_of(word, weights<TYPE>(at + step, first, 0xffff >> (LANES - there), none));
                store(panel + 4 * (j / A_WORD<HOW> * OUTPUTS + first), word);
            }
    }

    // Pairs of bfloat16, the even input's in the low halves.
    static Floats pairs_of(Floats even, Floats odd) {
        __m512i low = _mm512_cvtepu16_epi32((__m256i)to_bfloat16(even));
        __m512i high = _mm512_cvtepu16_epi32((__m256i)to_bfloat16(odd));
        return (Floats)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }

    // `count` weights of an output, number `i` and those behind it.
    template <int64_t TYPE>
    static __m512i words(const char* from, int64_t i, int64_t count, const Groups& groups) {
        uint32_t some = ~0u >> (32 - count);
        if constexpr (HOW == AS_FLOATS) {
            return (__m512i)weights<TYPE>(from, i, some, groups);
        } else {
            return pairs<TYPE>(from, i, some, groups);
        }
    }

    // Meanwhile the weights of the next panel are asked for.
    template <bool FRESH> void multiply(const char* from, int64_t count, const char* next) const {
        int64_t step = stride_bytes(op.w_type, op.w_output), x_step = op.x_row * size_of(op.x_type);
        int64_t lines = INPUTS * weight_bytes(op) / op.inputs / BLOCK, asked = 0, runs = OUTPUTS;
        if (is_row_major(op)) {  // inputs take the place of outputs
            step = stride_bytes(op.w_type, op.w_input), runs = INPUTS;
            lines = stride_bytes(op.w_type, OUTPUTS) / BLOCK;
        }
        for (int64_t row = 0; row < rows; row += MICRO_ROWS, from += MICRO_ROWS * x_step) {
            for (int n = 0; n < 8 && asked < lines * runs; n++, asked++)
                __builtin_prefetch(next + asked / lines * step + asked % lines * BLOCK, 0, 2);
            int64_t some = std::min<int64_t>(rows - row, MICRO_ROWS);
            const char* values = as_words(from, x_step, some, count);
            micro_rows<HOW, FRESH>(some, c + row * OUTPUTS, values,
                                   values == from ? x_step : 4 * DEEP, panel, count / A_WORD<HOW>);
        }
    }

    // Some rows' activations as what is multiplied: where they lie, or in `floats`.
    const char* as_words(const char* from, int64_t x_step, int64_t some, int64_t count) const {
        if (HOW == AS_PAIRS || op.x_type == FLOAT32) return from;
        op.x_type == FLOAT16 ? bring_floats<FLOAT16>(floats, DEEP, from, x_step, some, count)
                             : bring_floats<BFLOAT16>(floats, DEEP, from, x_step, some, count);
        return reinterpret_cast<const char*>(floats);
    }
};

#endif

}  // namespace
}  // namespace popxl
