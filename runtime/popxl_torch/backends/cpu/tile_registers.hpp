// Products of bfloat16 in the processor's tile registers (AMX): one instruction multiplies 32 inputs of 16
// outputs with 16 rows. It takes weights as they lie, and so little time that up to 64 rows wait for memory
// alone.

#pragma once

#include "elements.hpp"
#include "linear.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define POPXL_TILES 1

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

namespace popxl {
namespace {

// The intrinsics take numbers of registers as text. Sums of two blocks of outputs and two groups of rows are
// in 0 to 3, the weights of the blocks in 4 and 5, the activations of a group in 6.
#define WEIGHTS 4
#define MORE_WEIGHTS 5
#define PAIRS 6

constexpr int64_t TILE_INPUTS = 2 * TILE;
constexpr int64_t TOGETHER = 2;    // blocks of outputs, or groups of rows
constexpr int64_t LEAST_ROWS = 4;  // up to so many floats are as quick; a single row is quicker

// Whether Linux lets this process use the registers: it keeps them for those alone that have asked.
inline bool has_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    static const bool granted = !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
    return granted;
}

inline bool uses_tiles(const Linear& op) {
    return op.x_type == BFLOAT16 && op.w_type == BFLOAT16 && !is_row_major(op) &&
           op.rows > LEAST_ROWS && op.inputs % TILE_INPUTS == 0 && op.outputs % TILE == 0 &&
           has_tiles();
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
            shapes.bytes[i] = 4 * (i == WEIGHTS || i == MORE_WEIGHTS ? TILE : columns);
        }
        _tile_loadconfig(&shapes);
    }

    ~TileShapes() { _tile_release(); }
};

// Activations as pairs of inputs, [group of rows][segment][tile of inputs][pair][column].
struct PairsOfRows {
    const Linear& op;
    int64_t columns, groups, per_tile, tiles, per_group;

    explicit PairsOfRows(const Linear& op)
        : op(op),
          columns(std::min<int64_t>(op.rows, TILE)),
          groups((op.rows + TILE - 1) / TILE),
          per_tile(TILE * columns),
          tiles(op.inputs / TILE_INPUTS),
          per_group(op.segments * tiles * per_tile) {}

    void fill(uint32_t* to, const char* x) const {
        for (int64_t row = 0; row < op.rows; row += columns)
            for (int64_t segment = 0; segment < op.segments; segment++)
                for (int64_t tile = 0; tile < tiles; tile++, to += per_tile) {
                    __m512i of_rows[TILE];
                    for (int64_t r = 0; r < TILE; r++) {
                        int64_t at = (row + r) * op.x_row + segment * op.x_segment + tile * TILE_INPUTS;
                        of_rows[r] = r < columns && row + r < op.rows ? _mm512_loadu_si512(x + 2 * at)
                                                                      : __m512i{};
                    }
                    transpose(of_rows);
                    for (int64_t pair = 0; pair < TILE; pair++)
                        _mm512_mask_storeu_epi32(to + pair * columns, 0xffff >> (TILE - columns),
                                                 of_rows[pair]);
                }
    }
};

// Asks for the weights of some outputs in the order in which they lie.
class LaterWeights {
   public:
    LaterWeights(const Linear& op, const char* w, int64_t outputs)
        : from(w), lines(2 * op.inputs / LINE), outputs(outputs), to_output(2 * (op.w_output - op.inputs)),
          to_segment(2 * (op.w_segment - outputs * op.w_output)), line(lines), output(outputs) {}

    void ask(int64_t count) {
        while (count > 0) {
            int64_t some = std::min(count, line);
            for (int64_t i = 0; i < some; i++) ask_ahead(from + i * LINE);
            from += some * LINE, line -= some, count -= some;
            if (line) continue;
            line = lines, from += to_output;
            if (--output) continue;
            output = outputs, from += to_segment;
        }
    }

   private:
    const char* from;
    int64_t lines, outputs, to_output, to_segment, line, output;  // the last two are left
};

// The sums of blocks of 16 outputs, from `w` on, and of groups of rows, to [block][group][output][column].
// With each tile `lines` of later weights are asked for.
template <int BLOCKS, int GROUPS>
void multiply_tiles(const PairsOfRows& x, const uint32_t* pairs, const char* w, float* sums,
                    LaterWeights& later, int64_t lines) {
    const Linear& op = x.op;
    int64_t step = 2 * op.w_output, width = 4 * x.columns;
    _tile_zero(0);
    if (GROUPS > 1) _tile_zero(1);
    if (BLOCKS > 1) _tile_zero(2);
    if (BLOCKS > 1 && GROUPS > 1) _tile_zero(3);
    for (int64_t segment = 0; segment < op.segments; segment++, w += 2 * op.w_segment)
        for (int64_t tile = 0; tile < x.tiles; tile++, pairs += x.per_tile) {
            later.ask(lines);
            const char* from = w + 2 * TILE_INPUTS * tile;
            _tile_loadd(WEIGHTS, from, step);
            if (BLOCKS > 1) _tile_loadd(MORE_WEIGHTS, from + TILE * step, step);
            _tile_loadd(PAIRS, pairs, width);
            _tile_dpbf16ps(0, WEIGHTS, PAIRS);
            if (BLOCKS > 1) _tile_dpbf16ps(2, MORE_WEIGHTS, PAIRS);
            if (GROUPS > 1) {
                _tile_loadd(PAIRS, pairs + x.per_group, width);
                _tile_dpbf16ps(1, WEIGHTS, PAIRS);
                if (BLOCKS > 1) _tile_dpbf16ps(3, MORE_WEIGHTS, PAIRS);
            }
        }
    _tile_stored(0, sums, width);
    if (GROUPS > 1) _tile_stored(1, sums + x.per_tile, width);
    if (BLOCKS > 1) _tile_stored(2, sums + GROUPS * x.per_tile, width);
    if (BLOCKS > 1 && GROUPS > 1) _tile_stored(3, sums + 3 * x.per_tile, width);
}

#undef WEIGHTS
#undef MORE_WEIGHTS
#undef PAIRS

// A part of the outputs, as one thread multiplies it: the groups of rows take turns, two at a time. Few of
// them do so for each block of outputs, whose weights come from memory meanwhile; of many, each goes
// through the whole part.
struct TiledPart {
    const PairsOfRows& x;
    const uint32_t* pairs;
    const char* w;
    float* sums;  // [turn][block][group][output][column]
    int64_t part, outputs;
    bool followed;  // by a part whose weights lie behind these

    int64_t turns() const { return (x.groups + TOGETHER - 1) / TOGETHER; }
    int64_t groups(int64_t turn) const { return std::min(TOGETHER, x.groups - turn * TOGETHER); }

    void block(int64_t o, int64_t blocks, int64_t turn, float* to, LaterWeights& later,
               int64_t lines) const {
        constexpr decltype(&multiply_tiles<1, 1>) MULTIPLY[2][2] = {
            {multiply_tiles<1, 1>, multiply_tiles<1, 2>},
            {multiply_tiles<2, 1>, multiply_tiles<2, 2>}};
        MULTIPLY[blocks - 1][groups(turn) - 1](x, pairs + turn * TOGETHER * x.per_group,
                                               w + 2 * o * x.op.w_output,
                                               to + o * groups(turn) * x.columns, later, lines);
    }

    // All blocks, in some turns from number `turn` on.
    void run(int64_t turn, int64_t turns) const {
        for (int64_t o = 0; o < outputs;) {
            int64_t blocks = std::min(TOGETHER, (outputs - o) / TILE), next = o + blocks * TILE;
            LaterWeights later(x.op, w + 2 * next * x.op.w_output, blocks * TILE);
            bool more = turn == 0 && (next < outputs || followed);
            for (int64_t i = 0; i < turns; i++)
                block(o, blocks, turn + i, sums + i * TOGETHER * x.columns * part, later,
                      more ? blocks * TILE / turns : 0);
            o = next;
        }
    }
};

// Sums of blocks of 16 outputs to [row][part]. After all of them, since what a register stores cannot be
// read at once.
inline void by_rows(const PairsOfRows& x, int64_t groups, const float* sums, float* result, int64_t part,
                    int64_t outputs) {
    for (int64_t first = 0; first < outputs; first += TILE)
        for (int64_t row = 0; row < groups * x.columns; row += x.columns, sums += x.per_tile) {
            __m512i of_outputs[TILE];
            for (int64_t o = 0; o < TILE; o++)
                of_outputs[o] = _mm512_maskz_loadu_epi32(0xffff >> (TILE - x.columns), sums + o * x.columns);
            transpose(of_outputs);
            for (int64_t column = 0; column < x.columns; column++)
                _mm512_storeu_si512(result + (row + column) * part + first, of_outputs[column]);
        }
}

}  // namespace
}  // namespace popxl
#endif
