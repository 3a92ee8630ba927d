// Some rows of activations times some outputs' weights.

#pragma once

#include <utility>

#include "prepared.hpp"

namespace popxl {
namespace {

// A block of weights as floats; `block` adds to sums[r][o], times factor[o] for groups.
template <int64_t TYPE, bool PAIRS, int R, int O> struct FloatBlocks {
    typedef Decoder<TYPE, PAIRS> D;
    static constexpr int64_t BLOCK_FLOATS = D::VECTORS * R * LANES;
    typedef Floats Sums[R][O];

    static inline void block(Sums& sums, const char* w, int64_t step, const float* x,
                             const Floats (&factor)[O]) {
        if constexpr (TYPE == NIBBLES) {
            Sums these = {};
            block_of(these, w, step, x, std::make_integer_sequence<int, O>{});
            for (int r = 0; r < R; r++)
                for (int o = 0; o < O; o++) sums[r][o] += factor[o] * these[r][o];
        } else {
            block_of(sums, w, step, x, std::make_integer_sequence<int, O>{});
        }
    }

    template <int... I>
    static inline void block_of(Sums& sums, const char* w, int64_t step, const float* x,
                                std::integer_sequence<int, I...>) {
        const D d[O] = {D(w + I * step)...};
        vectors(sums, d, x);
    }

    template <int V = 0>
    static inline void vectors(Sums& sums, const D (&d)[O], const float* x) {
        if constexpr (V < D::VECTORS) {
            Floats weights[O];
            for (int o = 0; o < O; o++) weights[o] = d[o].template get<V>();
            for (int r = 0; r < R; r++) {
                Floats values = load<Floats>(x + (V * R + r) * LANES);
                for (int o = 0; o < O; o++)
                    sums[r][o] = add_products(sums[r][o], weights[o], values, PAIRS);
            }
            vectors<V + 1>(sums, d, x);
        }
    }
};

template <int64_t TYPE, Arithmetic HOW, int R, int O> struct Tile {
    typedef FloatBlocks<TYPE, HOW == AS_PAIRS, R, O> B;
    typedef Floats Sums[R][O];

    Sums total;

    // `w` of the first output; `x` as Prepared has it for these R rows.
    void run(const Linear& op, const Prepared& p, const char* w, const float* x, int64_t output,
             const Scales& scales) {
        for (int r = 0; r < R; r++)
            for (int o = 0; o < O; o++) total[r][o] = Floats{};
        int64_t segment_step = stride_bytes(TYPE, op.w_segment);
        for (int64_t segment = 0; segment < op.segments; segment++, w += segment_step) {
            if constexpr (TYPE == NIBBLES) {
                x = groups(op, p, w, x, output, segment, scales);
            } else if constexpr (TYPE == INT8) {
                x = channels(op, w, x, output, segment);
            } else {
                Sums sums;  // in registers, which members are not
                copy(sums, total);
                x = blocks(sums, op, w, x, [](int64_t, Floats(&)[O]) {});
                copy(total, sums);
            }
        }
    }

    static void copy(Sums& to, const Sums& from) {
        for (int r = 0; r < R; r++)
            for (int o = 0; o < O; o++) to[r][o] = from[r][o];
    }

    template <class Factors>
    static inline const float* blocks(Sums& sums, const Linear& op, const char* w, const float* x,
                                      Factors factors) {
        int64_t bytes = weight_bytes(op), step = stride_bytes(TYPE, op.w_output);
        int64_t whole = bytes / BLOCK * BLOCK;
        Floats factor[O];
        Ahead ahead(w, O * bytes);
        for (int64_t b = 0; b < whole; b += BLOCK, x += B::BLOCK_FLOATS) {
            ahead.ask(O);
            factors(b, factor);
            B::block(sums, w + b, step, x, factor);
        }
        if (whole < bytes) {
            char rest[O][BLOCK] = {};
            for (int o = 0; o < O; o++) std::memcpy(rest[o], w + o * step + whole, bytes - whole);
            factors(whole, factor);
            B::block(sums, rest[0], BLOCK, x, factor);
            x += B::BLOCK_FLOATS;
        }
        return x;
    }

    const float* channels(const Linear& op, const char* w, const float* x, int64_t output,
                          int64_t segment) {
        Sums sums = {};
        x = blocks(sums, op, w, x, [](int64_t, Floats(&)[O]) {});
        for (int o = 0; o < O; o++) {
            Floats scale = channel_scale(op, output + o, segment);
            for (int r = 0; r < R; r++) total[r][o] += scale * sums[r][o];
        }
        return x;
    }

    const float* groups(const Linear& op, const Prepared& p, const char* w, const float* x,
                        int64_t output, int64_t segment, const Scales& scales) {
        int64_t first = output * scales.per_output + segment * scales.groups;
        const float *scale = scales.scale + first, *offset = scales.offset + first;
        int64_t next = scales.per_output;
        Sums sums;
        copy(sums, total);
        x = blocks(sums, op, w, x, [&](int64_t b, Floats(&factor)[O]) {
            for (int o = 0; o < O; o++) factor[o] = scales.of_block(scale + o * next, b);
        });
        for (int64_t g = 0; g < p.sums; g++, x += R * LANES)
            for (int o = 0; o < O; o++) {
                Floats values = load<Floats>(offset + o * next + g * LANES);
                for (int r = 0; r < R; r++) sums[r][o] += values * load<Floats>(x + r * LANES);
            }
        copy(total, sums);
        return x;
    }
};

}  // namespace
}  // namespace popxl
