// What a product of few rows is given, and what follows from it.

#pragma once

#include <algorithm>

#include "nibbles.hpp"
#include "processor.hpp"
#include "vectors.hpp"
#include "work.hpp"

namespace popxl {

namespace {

constexpr int BLOCK = 64;     // bytes of weights that are decoded together
constexpr int MOST_ROWS = 8;  // at once; more go in turns while the weights are in the cache

// Whether the outputs of an input lie side by side, not the inputs of an output.
bool is_row_major(const Linear& op) { return op.w_input != 1; }

// Rows up to which the weight is used where it lies.
int64_t rows_in_place(const Linear& op) { return is_row_major(op) ? FEW_ROWS : SOME_ROWS; }

// How weights and activations are multiplied: as floats, as pairs of bfloat16 whose two products
// are added to a float by one instruction, or as whole numbers of 8 bits, of which an activation
// takes two or three, and four products are added by one instruction.
enum Arithmetic : int64_t { AS_FLOATS = 0, AS_PAIRS = 1, AS_2_BYTES = 2, AS_3_BYTES = 3 };

Arithmetic arithmetic_of(int64_t x_type, int64_t w_type) {
#ifdef POPXL_PAIRS
    if (x_type == BFLOAT16 && w_type == BFLOAT16) return AS_PAIRS;
#endif
#ifdef POPXL_BYTES
    if (w_type == INT8 || w_type == NIBBLES) return x_type == FLOAT32 ? AS_3_BYTES : AS_2_BYTES;
#endif
    return AS_FLOATS;
}

constexpr int64_t elements_per_block(int64_t type) {
    return type == FLOAT32 ? 16 : type == INT8 ? 64 : type == NIBBLES ? 128 : 32;
}

int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Bytes of `count` elements of weights; words of four numbers have strides of their own.
int64_t stride_bytes(int64_t type, int64_t count) { return count * (type == NIBBLES ? 2 : size_of(type)); }

// Bytes of one segment of one output's weights.
int64_t weight_bytes(const Linear& op) {
    return op.w_type == NIBBLES ? nibble_bytes(op.inputs) : op.inputs * size_of(op.w_type);
}

// The scale of an output of int8, number `output` of those whose scales begin at `scale`.
inline Floats channel_scale(const Linear& op, const char* scale, int64_t output, int64_t segment) {
    int64_t index = segment * op.scale_segment + output * op.scale_output;
    return splat(load_some(scale + index * size_of(op.scale_type), op.scale_type, 1)[0]);
}

// The scales and offsets of the groups of some outputs as floats, and which of them a block's
// elements have, in a lane for every eight.
struct Scales {
    const float *scale, *offset;  // [output][segment][groups, padded]
    int64_t groups, per_output;   // padded; segments * groups
    int shift;                    // of a block's place in bytes, to the number of its first group
    Ints lanes;

    Scales(const Linear& op, const float* scale, const float* offset, int64_t groups)
        : scale(scale), offset(offset), groups(groups), per_output(op.segments * groups) {
        if (op.w_type != NIBBLES) return;
        shift = __builtin_ctzll(op.group) - 1;
        for (int lane = 0; lane < LANES; lane++) lanes[lane] = 8 * lane / op.group;
    }

    // Those of an output's block that begins at byte `b`; `from` is the output's first one.
    Floats of_block(const float* from, int64_t b) const {
        from += b >> shift;
#ifdef __AVX512F__
        return (Floats)_mm512_permutexvar_ps((__m512i)lanes, _mm512_loadu_ps(from));
#else
        Floats values;
        for (int lane = 0; lane < LANES; lane++) values[lane] = from[lanes[lane]];
        return values;
#endif
    }
};

}  // namespace
}  // namespace popxl
