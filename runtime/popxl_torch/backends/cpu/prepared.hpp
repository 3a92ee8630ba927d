// The activations of a product in the order in which its weights are decoded.

#pragma once

#include "decoders.hpp"
#include "whole_numbers.hpp"

namespace popxl {
namespace {

// Vectors of 64 bytes, [segment][block][vector][row]. Behind the blocks of a segment: for whole numbers
// what belongs to their spans, [span][vector][row]; for groups the sums of their activations as floats,
// [group / 16][row].
struct Prepared {
    const Linear& op;
    Arithmetic arithmetic;
    int64_t blocks, of_blocks, sums, per_segment;  // of a row; all but `blocks` in vectors

    explicit Prepared(const Linear& op)
        : op(op), arithmetic(arithmetic_of(op.x_type, op.w_type)) {
        int64_t per_block = elements_per_block(op.w_type);
        int64_t span = arithmetic < AS_2_BYTES ? 1 : span_of(arithmetic);
        blocks = up(op.inputs, span * per_block) / per_block;
        sums = op.w_type == NIBBLES ? up(op.inputs / op.group, LANES) / LANES : 0;
        if (arithmetic < AS_2_BYTES) {
            of_blocks = blocks * per_block / (arithmetic == AS_PAIRS ? 2 * LANES : LANES);
        } else {
            of_blocks = blocks * block_vectors(op.w_type, arithmetic) +
                        blocks / span * span_vectors(op.w_type);
        }
        per_segment = of_blocks + sums;
    }

    int64_t floats() const { return per_segment * op.segments * op.rows * LANES; }
};

// Floats of a row before it is brought in order: whole spans of blocks, and some that are read beyond.
int64_t flat_floats(const Linear& op) { return up(op.inputs, 4 * 2 * BLOCK) + LANES; }

// 16 floats from wherever `places` says.
Floats pick(const float* from, const int32_t* places) {
#ifdef __AVX512F__
    return (Floats)_mm512_i32gather_ps(_mm512_loadu_si512(places), from, 4);
#else
    Floats values;
    for (int i = 0; i < LANES; i++) values[i] = from[places[i]];
    return values;
#endif
}

// Each function brings a row into the order of the weights; `step` floats from one vector to the
// next. Behind the row are zeros, up to the end of a block.
template <int64_t TYPE> void order_floats(float* to, int64_t step, const float* from, int64_t blocks) {
    typedef Decoder<TYPE, false> D;
    int32_t places[D::VECTORS][LANES];
    for (int v = 0; v < D::VECTORS; v++)
        for (int i = 0; i < LANES; i++) places[v][i] = D::element(v, i);
    bool in_order = places[0][1] == 1;
    for (int64_t block = 0; block < blocks; block++, from += D::VECTORS * LANES)
        for (int v = 0; v < D::VECTORS; v++, to += step)
            store(to, in_order ? load<Floats>(from + v * LANES) : pick(from, places[v]));
}

void order_pairs(float* to, int64_t step, const float* from, int64_t blocks) {
    for (int64_t block = 0; block < blocks; block++, from += 2 * LANES, to += step) {
        store(to, to_bfloat16(load<Floats>(from)));
        store(to + LANES / 2, to_bfloat16(load<Floats>(from + LANES)));
    }
}

void order_row(const Prepared& p, float* to, int64_t step, const float* flat) {
    if (p.arithmetic == AS_PAIRS) return order_pairs(to, step, flat, p.blocks);
#ifdef POPXL_BYTES
    if (p.arithmetic != AS_FLOATS)
        return order_whole_numbers(p.op.w_type, p.arithmetic, to, step, flat, p.blocks);
#endif
    switch (p.op.w_type) {
        case FLOAT32: return order_floats<FLOAT32>(to, step, flat, p.blocks);
        case FLOAT16: return order_floats<FLOAT16>(to, step, flat, p.blocks);
        case BFLOAT16: return order_floats<BFLOAT16>(to, step, flat, p.blocks);
        case INT8: return order_floats<INT8>(to, step, flat, p.blocks);
        case NIBBLES: return order_floats<NIBBLES>(to, step, flat, p.blocks);
    }
}

float group_sum(const float* from, int64_t count) {
    Floats total = {};
    for (int64_t i = 0; i < count; i += LANES)
        total += load_some(reinterpret_cast<const char*>(from + i), FLOAT32, count - i);
    return sum(total);
}

void prepare_row(const Prepared& p, float* to, int64_t step, const char* x, float* flat) {
    const Linear& op = p.op;
    for (int64_t segment = 0; segment < op.segments; segment++) {
        to_floats(flat, x + segment * op.x_segment * size_of(op.x_type), op.x_type, op.inputs);
        std::fill(flat + op.inputs, flat + flat_floats(op), 0.0f);
        order_row(p, to, step, flat);
        to += p.of_blocks * step;
        for (int64_t first = 0; first < p.sums * LANES; first += LANES, to += step)
            for (int64_t g = first; g < first + LANES; g++)
                to[g - first] = g < op.inputs / op.group ? group_sum(flat + g * op.group, op.group) : 0;
    }
}

// Adds the sums of the groups' activations, times their offsets, to the sums of an output.
template <int R>
void add_offsets(Floats (&sums)[R], const Prepared& p, const float* of_groups, const float* offset) {
    for (int64_t g = 0; g < p.sums; g++, of_groups += R * LANES)
        for (int r = 0; r < R; r++)
            sums[r] += load<Floats>(offset + g * LANES) * load<Floats>(of_groups + r * LANES);
}

}  // namespace
}  // namespace popxl
