// Some rows times some outputs: tile by tile, so many inputs at a time that their activations stay in the
// first cache while the outputs take turns.

#pragma once

#include <type_traits>

#include "whole_tiles.hpp"

namespace popxl {
namespace {

constexpr int64_t KEPT = 16;        // outputs whose sums are kept
constexpr int LINES = 4;            // of weights asked for in between, for a row
constexpr int64_t WIDE = 256;       // blocks times rows whose activations stay in the first cache
constexpr int64_t NEAR = 32 << 10;  // bytes of them, as whole numbers

// Where the scales of groups lie that the next part needs: those of its first output, `step` bytes an
// output. They are asked for while this part's weights are used.
struct LaterScales {
    const char *scale = nullptr, *offset = nullptr;
    int64_t step = 0;

    void ask(int64_t output) const {
        for (int64_t i = output * step; i < (output + 1) * step; i += 64) {
            ask_ahead(scale + i);
            ask_ahead(offset + i);
        }
    }
};

// What one thread works with: `result` is float [rows][part].
struct Task {
    const Linear& op;
    const Prepared& prepared;
    const char* w;   // of the part's first output
    const float* x;  // all rows
    float* result;
    int64_t part, outputs;  // room for outputs; how many there are
    const Scales& scales;
    const char* scale;  // int8: of the part's first output
    Fetcher& fetcher;   // of the weights behind the part's
    LaterScales later;
};

#ifdef POPXL_BYTES
template <int64_t TYPE, Arithmetic HOW, int R>
using QuantizedTileOf =
    std::conditional_t<HOW >= AS_2_BYTES, WholeTile<TYPE, HOW, R>, QuantizedTile<TYPE, HOW, R>>;
#else
template <int64_t TYPE, Arithmetic HOW, int R> using QuantizedTileOf = QuantizedTile<TYPE, HOW, R>;
#endif

// The sums of outputs, KEPT of [row], added up.
template <int R> void add_up(const Task& t, const Floats* sums, int64_t row, int64_t output) {
    static_assert(KEPT == LANES);
    for (int r = 0; r < R; r++) {
        store(t.result + (row + r) * t.part + output, sums_of_sixteen(sums + r, R));
        if (R > 4) t.fetcher.lines(LINES);
    }
}

// Where what is used AHEAD bytes later lies: outputs `step` bytes apart take turns in using `width` of
// their `bytes`, `together` of them at a time; number `o` is at byte `b`.
inline const char* used_later(const char* w, int64_t step, int64_t bytes, int64_t width, int together,
                              int64_t o, int64_t b) {
    if (together == 1 && width >= bytes) return w + o * step + AHEAD;
    int64_t place = o + std::max<int64_t>(AHEAD / std::min(width, bytes), 1) * together;
    if (place < KEPT) return w + place * step + b;
    place -= KEPT, b += width;
    return b < bytes ? w + place * step + b : w + (KEPT + place) * step;
}

// Weights of floats.
template <int64_t TYPE, Arithmetic HOW, int R> struct Rows {
    static constexpr int O = R > 4 ? 2 : 1;  // two outputs share what is read of many rows
    typedef Tile<TYPE, HOW, R, O> Together;
    typedef Tile<TYPE, HOW, R> Alone;
    static constexpr int64_t WIDTH = WIDE / R * BLOCK;
    static constexpr int64_t ASKED = O * AHEAD;  // bytes behind the outputs

    const Task& t;
    int64_t bytes, step;

    void run(Floats (&sums)[KEPT][R], const char* w, const float* x, int64_t, int64_t count) const {
        for (int64_t segment = 0; segment < t.op.segments; segment++) {
            for (int64_t b = 0; b < bytes; b += WIDTH) {
                if (segment || b) {
                    wide<false>(sums, w, x, count, b);
                } else {
                    wide<true>(sums, w, x, count, b);
                }
            }
            w += stride_bytes(TYPE, t.op.w_segment);
            x += t.prepared.per_segment * R * LANES;
        }
    }

    // The bytes from `b` on, at most WIDTH.
    template <bool FRESH>
    void wide(Floats (&sums)[KEPT][R], const char* w, const float* x, int64_t count, int64_t b) const {
        int64_t end = std::min(b + WIDTH, bytes), o = 0;
        for (; o + O <= count; o += O)
            Together::template range<FRESH>(of<typename Together::Sums>(sums[o]), w + o * step, step, x,
                                            b, end, used_later(w, step, bytes, WIDTH, O, o, b));
        for (; o < count; o++)
            Alone::template range<FRESH>(of<typename Alone::Sums>(sums[o]), w + o * step, step, x, b,
                                         end, used_later(w, step, bytes, WIDTH, O, o, b));
    }

    template <class S> static S& of(Floats (&sums)[R]) { return reinterpret_cast<S&>(sums); }
};

// Weights of 8 and 4 bits.
template <int64_t TYPE, Arithmetic HOW, int R> struct QuantizedRows {
    typedef QuantizedTileOf<TYPE, HOW, R> T;
    // Scales of groups must stay in the cache too.
    static constexpr int64_t MOST = TYPE == NIBBLES ? 2 << 10 : 1 << 20;
    static constexpr int64_t WIDTH = std::min(NEAR / (4 * T::STEP_FLOATS) * T::STEP, MOST);
    static constexpr int64_t ASKED = AHEAD;

    const Task& t;
    int64_t bytes, step;

    void run(Floats (&total)[KEPT][R], const char* w, const float* x, int64_t output,
             int64_t count) const {
        Floats sums[KEPT][R];  // of a segment
        for (int64_t segment = 0; segment < t.op.segments; segment++) {
            for (int64_t b = 0; b < bytes; b += WIDTH)
                for (int64_t o = 0; o < count; o++) {
                    if (TYPE == NIBBLES && !b) t.later.ask(output + o);
                    Floats these[R] = {};
                    if (b) std::copy(sums[o], sums[o] + R, these);
                    T::range(these, t.prepared, w + o * step, x, b, std::min(b + WIDTH, bytes),
                             {t.scales, t.scales.scale + groups(output + o, segment)},
                             used_later(w, step, bytes, WIDTH, 1, o, b));
                    if (b + WIDTH < bytes) {
                        std::copy(these, these + R, sums[o]);
                    } else {
                        add(total[o], these, x, output + o, segment);
                    }
                }
            w += stride_bytes(TYPE, t.op.w_segment);
            x += t.prepared.per_segment * R * LANES;
        }
    }

    // The first group of an output's segment.
    int64_t groups(int64_t output, int64_t segment) const {
        return output * t.scales.per_output + segment * t.scales.groups;
    }

    // Adds a segment's sums to an output's.
    void add(Floats (&total)[R], Floats (&sums)[R], const float* x, int64_t output,
             int64_t segment) const {
        Floats scale = splat(1);
        if constexpr (TYPE == NIBBLES) {
            add_offsets<R>(sums, t.prepared, x + t.prepared.of_blocks * R * LANES,
                           t.scales.offset + groups(output, segment));
        } else {
            scale = channel_scale(t.op, t.scale, output, segment);
        }
        for (int r = 0; r < R; r++) total[r] = (segment ? total[r] : Floats{}) + scale * sums[r];
    }
};

template <int64_t TYPE, Arithmetic HOW, int R>
using RowsOf = std::conditional_t<TYPE == INT8 || TYPE == NIBBLES, QuantizedRows<TYPE, HOW, R>,
                                  Rows<TYPE, HOW, R>>;

template <int64_t TYPE, Arithmetic HOW, int R>
void some_rows(const Task& t, const float* x, int64_t row) {
    typedef RowsOf<TYPE, HOW, R> Some;
    int64_t step = stride_bytes(TYPE, t.op.w_output);
    for (int64_t output = 0; output < t.outputs; output += KEPT) {
        const char* w = t.w + output * step;
        Floats sums[KEPT][R];  // those of outputs that are not there are not looked at
        Some{t, weight_bytes(t.op), step}.run(sums, w, x, output, std::min(KEPT, t.outputs - output));
        t.fetcher.start(w + KEPT * step + Some::ASKED, 2 * AHEAD);
        add_up<R>(t, sums[0], row, output);
    }
}

}  // namespace
}  // namespace popxl
