// Some rows of activations times one or two outputs' weights, as floats or pairs of bfloat16.

#pragma once

#include "prepared.hpp"

namespace popxl {
namespace {

template <int64_t TYPE, Arithmetic HOW, int R, int O = 1> struct Tile {
    static constexpr bool PAIRS = HOW == AS_PAIRS;
    typedef Decoder<TYPE, PAIRS> D;
    typedef Floats Sums[O][R];
    static constexpr int64_t BLOCK_FLOATS = D::VECTORS * R * LANES;

    // The products of the bytes `from` to `to` of a segment, FRESH or added to what is there; `x` is of
    // the segment's first. Outputs are `step` bytes apart. As many bytes are asked for at `next`, in
    // the order in which they lie, one output's after the other's.
    template <bool FRESH = false>
    static inline void range(Sums& total, const char* w, int64_t step, const float* x, int64_t from,
                             int64_t to, const char* next) {
        Sums sums = {};  // in registers, which what is referred to is not
        if (!FRESH) copy(sums, total);
        int64_t whole = to / BLOCK * BLOCK, middle = from + (whole - from) / 2 / BLOCK * BLOCK;
        const char* of_second = next + step;
        x += from / BLOCK * BLOCK_FLOATS;
        for (int64_t b = from; b < whole; b += BLOCK, x += BLOCK_FLOATS) {
            if (O == 2) next = b == middle ? of_second : next;
            for (int o = 0; o < O; o++, next += BLOCK) {
                ask_ahead(next);
                ask_soon(w + o * step + b);
            }
            block(sums, w + b, step, x);
        }
        if (whole < to) {
            char rest[O][BLOCK] = {};
            for (int o = 0; o < O; o++) std::memcpy(rest[o], w + o * step + whole, to - whole);
            block(sums, rest[0], BLOCK, x);
        }
        copy(total, sums);
    }

    static inline void copy(Sums& to, const Sums& from) {
        for (int o = 0; o < O; o++)
            for (int r = 0; r < R; r++) to[o][r] = from[o][r];
    }

    static inline void block(Sums& sums, const char* w, int64_t step, const float* x) {
        static_assert(O <= 2);
        const D d[2] = {D(w), D(w + (O - 1) * step)};
        vectors(sums, d, x);
    }

    template <int V = 0> static inline void vectors(Sums& sums, const D (&d)[2], const float* x) {
        if constexpr (V < D::VECTORS) {
            Floats weights[O];
            for (int o = 0; o < O; o++) weights[o] = d[o].template get<V>();
            for (int r = 0; r < R; r++) {
                Floats values = load<Floats>(x + (V * R + r) * LANES);
                for (int o = 0; o < O; o++)
                    sums[o][r] = add_products(sums[o][r], weights[o], values, PAIRS);
            }
            vectors<V + 1>(sums, d, x);
        }
    }
};

// What an output's weights are multiplied with: the scales of its groups, those of the segment first.
struct OfGroups {
    const Scales& scales;
    const float* scale;
};

// Weights of 8 and 4 bits as floats, an output at a time, for processors that cannot do better.
template <int64_t TYPE, Arithmetic HOW, int R> struct QuantizedTile {
    typedef Tile<TYPE, HOW, R> T;
    typedef Floats Sums[R];
    static constexpr int64_t STEP = BLOCK, STEP_FLOATS = T::BLOCK_FLOATS;

    // Adds the products of the bytes `from` to `to` of a segment, whose first are at `w` and `x`.
    static inline void range(Sums& sums, const Prepared&, const char* w, const float* x, int64_t from,
                      int64_t to, const OfGroups& groups, const char* next) {
        if constexpr (TYPE == INT8) {
            T::range(reinterpret_cast<typename T::Sums&>(sums), w, 0, x, from, to, next);
        } else {
            for (int64_t b = from; b < to; b += BLOCK, next += BLOCK) {
                typename T::Sums these = {};
                T::range(these, w, 0, x, b, std::min<int64_t>(b + BLOCK, to), next);
                Floats factor = groups.scales.of_block(groups.scale, b);
                for (int r = 0; r < R; r++) sums[r] += factor * these[0][r];
            }
        }
    }
};

}  // namespace
}  // namespace popxl
