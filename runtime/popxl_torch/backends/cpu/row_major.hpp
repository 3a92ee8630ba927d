// Products of few rows with a row-major weight: the outputs of an input lie side by side.
//
// Sums of many outputs stay in the first cache while inputs go by, several at a time. A row's result
// is one chain of sums in a fixed order, whatever the number of rows.

#pragma once

#include "linear.hpp"

namespace popxl {
namespace {

constexpr int INPUTS_AT_ONCE = 8;  // whose products are added up before they meet the sums
constexpr int OUTPUT_VECTORS = 2;  // whose sums are in registers

template <int64_t TYPE> inline Floats decoded(const char* from) {
    if constexpr (TYPE == INT8) {
        return from_int8(load<Bytes>(from));
    } else {
        return load_floats(from, TYPE);
    }
}

// Some inputs of a shard times some outputs; strides in bytes.
template <int64_t TYPE, int R> struct RowMajor {
    const char* w;       // of the first input and output
    int64_t step;        // from one input to the next
    const float* x;      // [inputs][R]
    float* sums;         // [R][room]
    int64_t room, outputs;
    static constexpr int64_t SIZE = TYPE == FLOAT32 ? 4 : TYPE == INT8 ? 1 : 2;
    static constexpr int64_t TOGETHER = OUTPUT_VECTORS * LANES;

    // Adds the products of inputs `i` to `i + N`, or begins with them. What is used next is at `next`.
    template <int N, bool FRESH> void inputs(int64_t i, const char* next) const {
        const char* from = w + i * step;
        const float* values = x + i * R;
        int64_t o = 0;
        for (; o + TOGETHER <= outputs; o += TOGETHER) {
            const char* at = from + o * SIZE;
            for (int n = 0; n < N; n++)
                for (int64_t line = 0; line < TOGETHER * SIZE; line += 64) {
                    if (TYPE != INT8 || o % 64 == 0) {
                        ask_ahead(next + n * step + o * SIZE + line);
                        ask_soon_after(at + n * step + line);
                    }
                }
            vectors<N, FRESH, OUTPUT_VECTORS>(at, step, values, sums + o);
        }
        for (; o < outputs; o += LANES) {  // what lies behind the last output is not read
            alignas(64) char some[N][LANES * SIZE] = {};
            for (int n = 0; n < N; n++)
                std::memcpy(some[n], from + n * step + o * SIZE,
                            std::min<int64_t>(outputs - o, LANES) * SIZE);
            vectors<N, FRESH, 1>(some[0], LANES * SIZE, values, sums + o);
        }
    }

    static void ask_soon_after(const char* in_use) {
        if (SOON) __builtin_prefetch(in_use + 128);
    }

    template <int N, bool FRESH, int V>
    void vectors(const char* from, int64_t stride, const float* values, float* to) const {
        Floats products[V][R] = {};
        for (int n = 0; n < N; n++, from += stride) {
            Floats weights[V];
            for (int v = 0; v < V; v++) weights[v] = decoded<TYPE>(from + v * LANES * SIZE);
            for (int r = 0; r < R; r++) {
                Floats value = splat(values[n * R + r]);
                for (int v = 0; v < V; v++) products[v][r] += weights[v] * value;
            }
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) {
                float* sum = to + r * room + v * LANES;
                store(sum, FRESH ? products[v][r] : load<Floats>(sum) + products[v][r]);
            }
    }

    // The products of all inputs, FRESH or added to what is there; then the weights at `behind` follow.
    void run(int64_t count, bool fresh, const char* behind) const {
        int64_t ahead = std::max<int64_t>(AHEAD / (outputs * SIZE * INPUTS_AT_ONCE), 1) * INPUTS_AT_ONCE;
        for (int64_t i = 0; i < count; i += INPUTS_AT_ONCE) {
            int64_t later = i + ahead;
            const char* next = later < count ? w + later * step : behind + (later - count) * step;
            if (i + INPUTS_AT_ONCE > count) {
                for (int64_t one = i; one < count; one++, next += step)
                    fresh && !one ? inputs<1, true>(one, next) : inputs<1, false>(one, next);
            } else {
                fresh && !i ? inputs<INPUTS_AT_ONCE, true>(i, next)
                            : inputs<INPUTS_AT_ONCE, false>(i, next);
            }
        }
    }
};

// Rows that are computed where there are `rows`: code for each number took longest to compile of all.
constexpr int64_t computed(int64_t rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : 8; }

// Some rows of activations as floats, [segment][input][row]; rows that are not there are zeros.
void interleave(const Linear& op, const char* x, int64_t rows, float* to, float* flat) {
    int64_t width = computed(rows);
    std::fill_n(to, op.segments * op.inputs * width, 0.0f);
    for (int64_t segment = 0; segment < op.segments; segment++, to += op.inputs * width)
        for (int64_t r = 0; r < rows; r++) {
            int64_t place = segment * op.x_segment + r * op.x_row;
            to_floats(flat, x + place * size_of(op.x_type), op.x_type, op.inputs);
            for (int64_t i = 0; i < op.inputs; i++) to[i * width + r] = flat[i];
        }
}

// One thread's part of the outputs: sums in `result`, [R][room].
struct RowMajorTask {
    const Linear& op;
    const char *w, *scale;  // of the first output
    const float* x;
    float *result, *of_segment;
    int64_t room, outputs;
};

template <int64_t TYPE, int R> void row_major_rows(const RowMajorTask& t) {
    const Linear& op = t.op;
    int64_t size = size_of(TYPE);
    for (int64_t segment = 0; segment < op.segments; segment++) {
        bool last = segment + 1 == op.segments;
        const char* w = t.w + segment * op.w_segment * size;
        const char* behind = last ? t.w + t.outputs * size : w + op.w_segment * size;
        float* sums = TYPE == INT8 ? t.of_segment : t.result;
        RowMajor<TYPE, R>{w, op.w_input * size, t.x + segment * op.inputs * R, sums, t.room, t.outputs}.run(
            op.inputs, TYPE == INT8 || !segment, behind);
        if constexpr (TYPE == INT8)
            for (int64_t o = 0; o < t.outputs; o++) {
                float scale = channel_scale(op, t.scale, o, segment)[0];
                for (int r = 0; r < R; r++) {
                    float* sum = t.result + r * t.room + o;
                    *sum = (segment ? *sum : 0) + scale * sums[r * t.room + o];
                }
            }
    }
}

template <int64_t TYPE> void row_major_of(const RowMajorTask& t, int64_t rows) {
    switch (computed(rows)) {
        case 1: return row_major_rows<TYPE, 1>(t);
        case 2: return row_major_rows<TYPE, 2>(t);
        case 4: return row_major_rows<TYPE, 4>(t);
        default: return row_major_rows<TYPE, 8>(t);
    }
}

void row_major(const RowMajorTask& t, int64_t rows) {
    switch (t.op.w_type) {
        case FLOAT32: return row_major_of<FLOAT32>(t, rows);
        case FLOAT16: return row_major_of<FLOAT16>(t, rows);
        case BFLOAT16: return row_major_of<BFLOAT16>(t, rows);
        default: return row_major_of<INT8>(t, rows);
    }
}

// How the outputs of a row-major weight are shared out: memory is read the faster the wider the parts.
struct Columns {
    static constexpr int64_t WIDE = 512, WIDEST = 1024, SUMS = 4096, PARTS_OF_THREAD = 4;
    int64_t outputs, count, items;

    Columns(const Linear& op, int threads) {
        int64_t meshes = count_of(op.mesh), rows = std::min<int64_t>(op.rows, MOST_ROWS);
        int64_t most = std::clamp(SUMS / rows, WIDE, WIDEST);  // sums that stay in the first cache
        int64_t fair = op.outputs * meshes / (PARTS_OF_THREAD * threads);
        count = (op.outputs - 1) / std::clamp(fair, WIDE, most) + 1;
        while (count * meshes % threads && count * LANES < op.outputs) count++;
        outputs = up((op.outputs - 1) / count + 1, OUTPUT_VECTORS * LANES);
        count = (op.outputs - 1) / outputs + 1;
        items = meshes * count;
    }
};

}  // namespace
}  // namespace popxl
