// Products of some rows of bfloat16 in the processor's tile registers (AMX): one instruction multiplies 32
// inputs of 16 outputs with 16 rows. It takes weights as they lie, and so little time that up to 64 rows wait
// for memory alone.

#pragma once

#include "linear.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define POPXL_TILES 1

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

namespace popxl {
namespace {

// The intrinsics take numbers of registers as text.
#define WEIGHTS 4
#define PAIRS 5  // of activations; 0 to 3 have the sums of 16 rows each

constexpr int64_t TILE_INPUTS = 2 * TILE;
constexpr int64_t LEAST_ROWS = 4;  // up to so many floats are as quick; a single row is quicker

// Whether Linux lets this process use the registers: it keeps them for those alone that have asked.
inline bool has_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    static const bool granted = !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
    return granted;
}

inline bool uses_tiles(const Linear& op) {
    return op.x_type == BFLOAT16 && op.w_type == BFLOAT16 && !is_row_major(op) &&
           op.rows > LEAST_ROWS && op.rows <= SOME_ROWS && op.inputs % TILE_INPUTS == 0 &&
           op.outputs % TILE == 0 && has_tiles();
}

// The registers' shapes while it lives: `columns` rows of activations.
struct TileShapes {
    explicit TileShapes(int64_t columns) {
        struct alignas(64) {
            uint8_t palette, start, reserved[14];
            uint16_t bytes[16];
            uint8_t rows[16];
        } shapes = {};
        shapes.palette = 1;
        for (int i = 0; i <= PAIRS; i++) {
            shapes.rows[i] = TILE;
            shapes.bytes[i] = 4 * (i == WEIGHTS ? TILE : columns);
        }
        _tile_loadconfig(&shapes);
    }

    ~TileShapes() { _tile_release(); }
};

// Activations as pairs of inputs, [segment][tile of inputs][group of rows][pair][column].
struct PairsOfRows {
    const Linear& op;
    int64_t columns, groups, per_group, tiles, count;

    explicit PairsOfRows(const Linear& op)
        : op(op),
          columns(std::min<int64_t>(op.rows, TILE)),
          groups((op.rows + TILE - 1) / TILE),
          per_group(TILE * columns),
          tiles(op.inputs / TILE_INPUTS),
          count(op.segments * tiles * groups * per_group) {}

    void fill(uint32_t* to, const char* x) const {
        if (op.rows % columns) std::fill(to, to + count, 0);
        for (int64_t row = 0; row < op.rows; row++)
            for (int64_t segment = 0; segment < op.segments; segment++) {
                const char* from = x + 2 * (row * op.x_row + segment * op.x_segment);
                uint32_t* place = to + (segment * tiles * groups + row / columns) * per_group;
                place += row % columns;
                for (int64_t tile = 0; tile < tiles; tile++, place += groups * per_group)
                    for (int64_t pair = 0; pair < TILE; pair++, from += 4)
                        std::memcpy(place + pair * columns, from, 4);
            }
    }
};

// Asks for the weights of outputs in the order in which they lie.
struct LaterWeights {
    const char* from;
    int64_t lines, gap, left = lines;  // of an output; bytes between outputs; of this output

    void some() {  // TILE of them
        if (left >= TILE) {
            for (int i = 0; i < TILE; i++) ask_ahead(from + i * LINE);
            from += TILE * LINE, left -= TILE;
            if (!left) from += gap, left = lines;
            return;
        }
        for (int i = 0; i < TILE; i++) {
            ask_ahead(from);
            from += LINE;
            if (!--left) from += gap, left = lines;
        }
    }
};

// The sums of 16 outputs, from `w` on, to [group of rows][output][column].
template <int GROUPS>
void block_of_outputs(const PairsOfRows& x, const uint32_t* pairs, const char* w, float* sums,
                     bool more) {
    const Linear& op = x.op;
    int64_t step = 2 * op.w_output, width = 4 * x.columns;
    _tile_zero(0);
    if (GROUPS > 1) _tile_zero(1);
    if (GROUPS > 2) _tile_zero(2);
    if (GROUPS > 3) _tile_zero(3);
    for (int64_t segment = 0; segment < op.segments; segment++, w += 2 * op.w_segment) {
        LaterWeights later{w + TILE * step, x.tiles, step - 2 * op.inputs};
        for (int64_t tile = 0; tile < x.tiles; tile++, pairs += GROUPS * x.per_group) {
            if (more) later.some();
            _tile_loadd(WEIGHTS, w + 2 * TILE_INPUTS * tile, step);
            _tile_loadd(PAIRS, pairs, width);
            _tile_dpbf16ps(0, WEIGHTS, PAIRS);
            if (GROUPS > 1) {
                _tile_loadd(PAIRS, pairs + x.per_group, width);
                _tile_dpbf16ps(1, WEIGHTS, PAIRS);
            }
            if (GROUPS > 2) {
                _tile_loadd(PAIRS, pairs + 2 * x.per_group, width);
                _tile_dpbf16ps(2, WEIGHTS, PAIRS);
            }
            if (GROUPS > 3) {
                _tile_loadd(PAIRS, pairs + 3 * x.per_group, width);
                _tile_dpbf16ps(3, WEIGHTS, PAIRS);
            }
        }
    }
    _tile_stored(0, sums, width);
    if (GROUPS > 1) _tile_stored(1, sums + x.per_group, width);
    if (GROUPS > 2) _tile_stored(2, sums + 2 * x.per_group, width);
    if (GROUPS > 3) _tile_stored(3, sums + 3 * x.per_group, width);
}

// Sums of blocks of 16 outputs to [row][part]. After all of them, since what a register stores cannot be
// read at once.
void by_rows(const PairsOfRows& x, const float* sums, float* result, int64_t part, int64_t outputs) {
    for (int64_t first = 0; first < outputs; first += TILE)
        for (int64_t row = 0; row < x.groups * x.columns; row += x.columns, sums += x.per_group)
            for (int64_t o = 0; o < TILE; o++)
                for (int64_t column = 0; column < x.columns; column++)
                    result[(row + column) * part + first + o] = sums[o * x.columns + column];
}

}  // namespace
}  // namespace popxl
#endif
