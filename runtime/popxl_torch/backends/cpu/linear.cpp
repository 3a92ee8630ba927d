// Products of few rows with a weight: every weight is read once.
//
// A row's result is one chain of sums in a fixed order, whatever the number of rows.

#pragma once

#include "epilogue.hpp"
#include "matrix.hpp"
#include "row_major.hpp"
#include "rows.hpp"
#include "tile_registers.hpp"

namespace popxl {
namespace {

constexpr int64_t PART = 32 << 10, LARGE_PART = 128 << 10;  // bytes of weights taken at a time
constexpr int64_t LARGEST_PART = 1 << 20;                   // by many rows
constexpr int64_t PARTS = 8;                                // of a thread, where they are large

template <int64_t TYPE, Arithmetic HOW = AS_FLOATS> void all_rows(const Task& t) {
    const float* x = t.x;
    for (int64_t row = 0; row < t.op.rows; row += MOST_ROWS) {
        int64_t rows = std::min<int64_t>(t.op.rows - row, MOST_ROWS);
        switch (rows) {
            case 1: some_rows<TYPE, HOW, 1>(t, x, row); break;
            case 2: some_rows<TYPE, HOW, 2>(t, x, row); break;
            case 3: some_rows<TYPE, HOW, 3>(t, x, row); break;
            case 4: some_rows<TYPE, HOW, 4>(t, x, row); break;
            case 5: some_rows<TYPE, HOW, 5>(t, x, row); break;
            case 6: some_rows<TYPE, HOW, 6>(t, x, row); break;
            case 7: some_rows<TYPE, HOW, 7>(t, x, row); break;
            default: some_rows<TYPE, HOW, 8>(t, x, row);
        }
        x += rows * t.prepared.per_segment * t.op.segments * LANES;
    }
}

template <int64_t TYPE> void quantized(const Task& t) {
#ifdef POPXL_BYTES
    return t.prepared.arithmetic == AS_2_BYTES ? all_rows<TYPE, AS_2_BYTES>(t)
                                               : all_rows<TYPE, AS_3_BYTES>(t);
#endif
    all_rows<TYPE>(t);
}

void products(const Task& t) {
    switch (t.op.w_type) {
        case FLOAT32: return all_rows<FLOAT32>(t);
        case FLOAT16: return all_rows<FLOAT16>(t);
        case BFLOAT16:
#ifdef POPXL_PAIRS
            if (t.prepared.arithmetic == AS_PAIRS) return all_rows<BFLOAT16, AS_PAIRS>(t);
#endif
            return all_rows<BFLOAT16>(t);
        case INT8: return quantized<INT8>(t);
        case NIBBLES: return quantized<NIBBLES>(t);
    }
}

// What follows sums [rows][part].
void finish(const Linear& op, const float* sums, int64_t part, int64_t outputs, const MeshPosition& place,
            int64_t first, int64_t begin, int64_t rows, Fetcher fetcher = {}) {
    Epilogue<Linear> epilogue(op, place, begin, first);
    for (int64_t row = 0; row < rows; row++, sums += part, epilogue.next_row()) {
        fetcher.lines(LINES);
        for (int64_t o = 0; o < outputs; o += LANES)
            epilogue.put(o, outputs - o, load<Floats>(sums + o));
    }
}

// The scales of some outputs, as floats in `to`, `groups` for each segment.
void read_scales(const Linear& op, const void* from, int64_t mesh, int64_t first, int64_t outputs,
                 int64_t groups, float* to) {
    int64_t count = op.inputs / op.group, place = mesh + first * op.scale_output;
    if (op.segments == 1 && op.scale_output == groups)
        return to_floats(to, at(from, op.scale_type, place), op.scale_type, outputs * groups);
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t segment = 0; segment < op.segments; segment++, to += groups) {
            int64_t index = place + o * op.scale_output + segment * op.scale_segment;
            to_floats(to, at(from, op.scale_type, index), op.scale_type, count);
            std::fill(to + count, to + groups, 0.0f);
        }
}

// The items of an instruction: parts of outputs, one shard after another.
struct Parts {
    int64_t outputs, count, items;

    Parts(const Linear& op, int threads) {
        int64_t bytes = weight_bytes(op) * op.segments;
        int64_t fair = bytes * op.outputs * count_of(op.mesh) / (PARTS * threads);
        int64_t part = std::clamp(fair, PART, op.rows > SOME_ROWS ? LARGEST_PART : LARGE_PART);
        outputs = std::clamp<int64_t>(up(part / bytes, LANES), LANES, up(op.outputs, LANES));
        count = (op.outputs + outputs - 1) / outputs;
        items = count_of(op.mesh) * count;
    }
};

void run_few(const Linear& op, const Worker& worker) {
    Prepared prepared(op);
    Parts parts(op, worker.threads);
    int64_t part = parts.outputs, items = parts.items;
    int64_t groups = op.w_type == NIBBLES ? up(op.inputs / op.group, LANES) : 0;
    int64_t scale_floats = part * op.segments * groups + LANES;  // 16 are read from any one on

    float* x = worker.room<float>(prepared.floats() + flat_floats(op) + op.rows * part + 2 * scale_floats);
    float* flat = x + prepared.floats();
    float* result = flat + flat_floats(op);
    float* scale = result + op.rows * part;
    float* offset = scale + scale_floats;

    int64_t prepared_for = -1;
    for (int64_t item = worker.next(items); item >= 0; item = worker.next(items)) {
        int64_t m = item / parts.count, first = item % parts.count * part;
        MeshPosition place(op.mesh, m);
        int64_t of_x = place.offset(op.x_mesh);
        if (of_x != prepared_for) {
            const char* rows = at(op.x, op.x_type, of_x);
            float* to = x;
            for (int64_t row = 0; row < op.rows; row += MOST_ROWS) {
                int64_t some = std::min<int64_t>(op.rows - row, MOST_ROWS);
                for (int64_t r = 0; r < some; r++)
                    prepare_row(prepared, to + r * LANES, some * LANES,
                                rows + (row + r) * op.x_row * size_of(op.x_type), flat);
                to += some * prepared.per_segment * op.segments * LANES;
            }
            prepared_for = of_x;
        }
        int64_t outputs = std::min(part, op.outputs - first);
        int64_t of_scale = place.offset(op.scale_mesh);
        int64_t of_w = place.offset(op.w_mesh) + first * op.w_output;
        if (op.w_type == NIBBLES) {
            read_scales(op, op.scale, of_scale, first, outputs, groups, scale);
            read_scales(op, op.offset, of_scale, first, outputs, groups, offset);
        }
        Scales scales(op, scale, offset, groups);
        const char* scale_of_first =
            op.w_type == INT8 ? at(op.scale, op.scale_type, of_scale + first * op.scale_output)
                              : nullptr;
        LaterScales later;
        if (op.w_type == NIBBLES) {
            int64_t behind = of_scale + (first + part) * op.scale_output;
            later = {at(op.scale, op.scale_type, behind), at(op.offset, op.scale_type, behind),
                     op.scale_output * size_of(op.scale_type)};
        }
        Fetcher fetcher;
        products(Task{op, prepared, at(op.w, op.w_type, of_w), x, result, part, outputs, scales,
                      scale_of_first, fetcher, later});
        finish(op, result, part, outputs, place, first, 0, op.rows, fetcher);
    }
}

void run_few_row_major(const Linear& op, const Worker& worker) {
    Columns columns(op, worker.threads);
    int64_t room = up(columns.outputs, LANES), most = up(op.rows, MOST_ROWS);
    int64_t of_x = op.inputs * op.segments * most;
    float* x = worker.room<float>(of_x + up(op.inputs, LANES) + (most + MOST_ROWS) * room);
    float *flat = x + of_x, *result = flat + up(op.inputs, LANES), *of_segment = result + most * room;
    int64_t prepared_for = -1;
    for (int64_t item = worker.next(columns.items); item >= 0; item = worker.next(columns.items)) {
        MeshPosition place(op.mesh, item / columns.count);
        int64_t first = item % columns.count * columns.outputs;
        int64_t outputs = std::min(columns.outputs, op.outputs - first);
        int64_t at_x = place.offset(op.x_mesh);
        const char* w = at(op.w, op.w_type, place.offset(op.w_mesh) + first);
        const char* scale = nullptr;
        if (op.w_type == INT8)
            scale = at(op.scale, op.scale_type,
                       place.offset(op.scale_mesh) + first * op.scale_output);
        for (int64_t row = 0; row < op.rows; row += MOST_ROWS) {
            int64_t rows = std::min<int64_t>(op.rows - row, MOST_ROWS);
            float* values = x + row * op.inputs * op.segments;
            if (at_x != prepared_for)
                interleave(op, at(op.x, op.x_type, at_x + row * op.x_row), rows, values, flat);
            row_major({op, w, scale, values, result + row * room, of_segment, room, outputs}, rows);
        }
        prepared_for = at_x;
        finish(op, result, room, outputs, place, first, 0, op.rows);
    }
}

#ifdef POPXL_TILES
void run_tiles(const Linear& op, const Worker& worker) {
    PairsOfRows x(op);
    Parts parts(op, worker.threads);
    int64_t part = parts.outputs, at_once = TOGETHER * x.columns;  // rows
    float* result = worker.room<float>((at_once + SOME_ROWS) * part + x.groups * x.per_group);
    float* sums = result + at_once * part;
    uint32_t* pairs = reinterpret_cast<uint32_t*>(sums + SOME_ROWS * part);
    TileShapes shapes(x.columns);
    int64_t own_end = worker.begin(parts.items, worker.thread + 1), filled_for = -1;
    for (int64_t item = worker.next(parts.items); item >= 0; item = worker.next(parts.items)) {
        MeshPosition place(op.mesh, item / parts.count);
        int64_t first = item % parts.count * part, outputs = std::min(part, op.outputs - first);
        int64_t of_x = place.offset(op.x_mesh);
        if (of_x != filled_for) x.fill(pairs, at(op.x, op.x_type, of_x));
        filled_for = of_x;
        const char* w = at(op.w, op.w_type, place.offset(op.w_mesh) + first * op.w_output);
        TiledPart tiled{x, pairs, w, sums, part, outputs, item + 1 < own_end};
        int64_t some = op.rows > SOME_ROWS ? 1 : tiled.turns();
        for (int64_t turn = 0; turn < tiled.turns(); turn++) {
            if (turn % some == 0) tiled.run(turn, some);
            int64_t row = turn * at_once;
            by_rows(x, tiled.groups(turn), sums + turn % some * at_once * part, result, part, outputs);
            finish(op, result, part, outputs, place, first, row, std::min(op.rows - row, at_once));
        }
    }
}
#endif

#ifdef POPXL_PANELS
template <Arithmetic HOW> void run_panels(const Linear& op, const Worker& worker) {
    int64_t count = (op.outputs + OUTPUTS - 1) / OUTPUTS, items = count_of(op.mesh) * count;
    int64_t groups = op.w_type == NIBBLES ? up(op.inputs / op.group, LANES) : 0;
    int64_t scales = OUTPUTS * std::max<int64_t>(op.segments * groups, 1) + LANES;
    float* c = worker.room<float>((AT_ONCE + DEEP) * OUTPUTS + MICRO_ROWS * DEEP + 2 * scales);
    float *panel = c + AT_ONCE * OUTPUTS, *floats = panel + DEEP * OUTPUTS;
    float *scale = floats + MICRO_ROWS * DEEP, *offset = scale + scales;
    for (int64_t item = worker.next(items); item >= 0; item = worker.next(items)) {
        MeshPosition place(op.mesh, item / count);
        int64_t first = item % count * OUTPUTS, outputs = std::min(OUTPUTS, op.outputs - first);
        int64_t of_scale = place.offset(op.scale_mesh);
        if (op.w_type == NIBBLES) {
            read_scales(op, op.scale, of_scale, first, outputs, groups, scale);
            read_scales(op, op.offset, of_scale, first, outputs, groups, offset);
        }
        const char* w = at(op.w, op.w_type, place.offset(op.w_mesh) + first * op.w_output);
        for (int64_t row = 0; row < op.rows; row += AT_ONCE) {
            int64_t rows = std::min(AT_ONCE, op.rows - row);
            const char* x = at(op.x, op.x_type, place.offset(op.x_mesh) + row * op.x_row);
            Panels<HOW>{op,     w,           x,      outputs, rows, scale, offset,
                        groups, (char*)panel, floats, c}
                .run();
            if (op.w_type == INT8) {
                for (int64_t o = 0; o < OUTPUTS; o++) {
                    int64_t output = std::min(first + o, op.outputs - 1);
                    int64_t index = of_scale + output * op.scale_output;
                    scale[o] = load_some(at(op.scale, op.scale_type, index), op.scale_type, 1)[0];
                }
                for (int64_t i = 0; i < rows * OUTPUTS; i += LANES)
                    store(c + i, load<Floats>(c + i) * load<Floats>(scale + i % OUTPUTS));
            }
            finish(op, c, OUTPUTS, outputs, place, first, row, rows);
        }
    }
}

void run_many(const Linear& op, const Worker& worker) {
#ifdef POPXL_PAIRS
    if (op.x_type == BFLOAT16 && op.w_type != FLOAT32 && op.inputs % 2 == 0)
        return run_panels<AS_PAIRS>(op, worker);
#endif
    run_panels<AS_FLOATS>(op, worker);
}
#endif

}  // namespace

void run(const Linear& op, const Worker& worker) {
#ifdef POPXL_TILES
    if (uses_tiles(op)) return run_tiles(op, worker);
#endif
#ifdef POPXL_PANELS
    if (op.rows > rows_in_place(op)) return run_many(op, worker);
#endif
    is_row_major(op) ? run_few_row_major(op, worker) : run_few(op, worker);
}

const char* first_weights(const Linear& op, const Worker& worker) {
    if (is_row_major(op) || op.rows > rows_in_place(op)) return nullptr;
    Parts parts(op, worker.threads);
    int64_t item = worker.begin(parts.items, worker.thread);
    MeshPosition place(op.mesh, item / parts.count);
    int64_t first = item % parts.count * parts.outputs * op.w_output;
    return at(op.w, op.w_type, place.offset(op.w_mesh) + first);
}

}  // namespace popxl
