// Products of few rows with a weight whose outputs are rows of memory: every weight is read once.
//
// A row's result is one chain of sums in a fixed order, whatever the number of rows.

#include <algorithm>
#include <utility>

#include "vectors.hpp"
#include "work.hpp"

namespace popxl {

// All fields have 8 bytes. Strides are in elements; those of a mesh axis are 0 where it is held once.
struct Linear {
    const void *x, *w, *scale, *offset, *bias, *residual;
    void* out;
    int64_t x_type, w_type, scale_type, bias_type, residual_type, out_type, activation;
    int64_t rows, in, outputs, segments, group;
    int64_t mesh[3];
    int64_t x_mesh[3], x_segment, x_row;
    int64_t w_mesh[3], w_segment, w_output;
    int64_t scale_mesh[3], scale_segment, scale_output;
    int64_t bias_mesh[3];
    int64_t residual_mesh[3], residual_row;
    int64_t out_mesh[3], out_row;
};

namespace {

constexpr int BLOCK = 64;     // bytes of weights that are decoded together
constexpr int MOST_ROWS = 8;  // at once; more go in turns while the weights are in the cache
constexpr int64_t PART = 48 << 10;  // bytes of weights that a thread takes at a time

// For each type: how many vectors a block makes, which element lane l of vector v is, and the
// vectors themselves.
template <int64_t TYPE> struct Decoder;

template <> struct Decoder<FLOAT32> {
    static constexpr int VECTORS = 1;
    static int element(int, int lane) { return lane; }
    Floats raw;
    explicit Decoder(const char* from) : raw(load<Floats>(from)) {}
    template <int V> Floats get() const { return raw; }
};

template <> struct Decoder<FLOAT16> {
    static constexpr int VECTORS = 2;
    static int element(int v, int lane) { return v * LANES + lane; }
    const char* from;
    explicit Decoder(const char* from) : from(from) {}
    template <int V> Floats get() const { return from_float16(load<Halves>(from + 32 * V)); }
};

template <> struct Decoder<BFLOAT16> {  // even elements, then odd ones
    static constexpr int VECTORS = 2;
    static int element(int v, int lane) { return 2 * lane + v; }
    Words raw;
    explicit Decoder(const char* from) : raw(load<Words>(from)) {}
    template <int V> Floats get() const { return as_floats(V ? raw & 0xffff0000 : raw << 16); }
};

template <> struct Decoder<INT8> {
    static constexpr int VECTORS = 4;
    static int element(int v, int lane) { return v * LANES + lane; }
    const char* from;
    explicit Decoder(const char* from) : from(from) {}
    template <int V> Floats get() const { return from_int8(load<Bytes>(from + 16 * V)); }
};

template <> struct Decoder<NIBBLES> {  // a 16-bit word has four numbers, the first one highest
    static constexpr int VECTORS = 8;
    static int element(int v, int lane) { return 8 * lane + (v & 4) + 3 - (v & 3); }
    Words raw;
    explicit Decoder(const char* from) : raw(load<Words>(from)) {}
    template <int V> Floats get() const {
        Words number = raw >> (4 * V);
#ifdef __AVX512F__  // the lowest four bits of an index choose
        const Floats values = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        return (Floats)_mm512_permutexvar_ps((__m512i)number, (__m512)values);
#else
        return __builtin_convertvector((Ints)(number & 15), Floats);
#endif
    }
};

template <int64_t TYPE> constexpr int PER_BLOCK = Decoder<TYPE>::VECTORS * LANES;

constexpr bool scaled_by_group(int64_t type) { return type == NIBBLES; }

int64_t elements_per_block(int64_t type) {
    return type == FLOAT32 ? 16 : type == INT8 ? 64 : type == NIBBLES ? 128 : 32;
}

int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Bytes of one segment of one output's weights.
int64_t weight_bytes(const Linear& op) {
    return op.w_type == NIBBLES ? op.in / 2 : op.in * size_of(op.w_type);
}

// The activations as the decoders order the weights: float [segment][block][vector][row][lane], and
// for groups their sums behind each segment: float [group / 16][row][lane].
struct Prepared {
    const Linear& op;
    int64_t blocks, sums, per_segment;  // per row, in vectors
    int vectors;

    explicit Prepared(const Linear& op) : op(op) {
        int64_t per_block = elements_per_block(op.w_type);
        vectors = per_block / LANES;
        blocks = (op.in + per_block - 1) / per_block;
        sums = op.w_type == NIBBLES ? up(op.in / op.group, LANES) / LANES : 0;
        per_segment = blocks * vectors + sums;
    }

    int64_t floats() const { return per_segment * op.segments * op.rows * LANES; }
};

template <int64_t TYPE> void order(float* to, int64_t step, const float* from, int64_t blocks) {
    typedef Decoder<TYPE> D;
    int32_t places[D::VECTORS][LANES];
    for (int v = 0; v < D::VECTORS; v++)
        for (int lane = 0; lane < LANES; lane++) places[v][lane] = D::element(v, lane);
    for (int64_t block = 0; block < blocks; block++, from += PER_BLOCK<TYPE>) {
        for (int v = 0; v < D::VECTORS; v++, to += step) {
            if (D::element(v, 1) - D::element(v, 0) == 1) {
                store(to, load<Floats>(from + v * LANES));
                continue;
            }
#ifdef __AVX512F__
            __m512i index = _mm512_loadu_si512(places[v]);
            _mm512_storeu_ps(to, _mm512_i32gather_ps(index, from, 4));
#else
            for (int lane = 0; lane < LANES; lane++) to[lane] = from[places[v][lane]];
#endif
        }
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
        to_floats(flat, x + segment * op.x_segment * size_of(op.x_type), op.x_type, op.in);
        std::fill(flat + op.in, flat + up(op.in, BLOCK * 2) + LANES, 0.0f);
        switch (op.w_type) {
            case FLOAT32: order<FLOAT32>(to, step, flat, p.blocks); break;
            case FLOAT16: order<FLOAT16>(to, step, flat, p.blocks); break;
            case BFLOAT16: order<BFLOAT16>(to, step, flat, p.blocks); break;
            case INT8: order<INT8>(to, step, flat, p.blocks); break;
            default: order<NIBBLES>(to, step, flat, p.blocks);
        }
        to += p.blocks * p.vectors * step;
        for (int64_t first = 0; first < p.sums * LANES; first += LANES, to += step)
            for (int64_t g = first; g < first + LANES; g++)
                to[g - first] = g < op.in / op.group ? group_sum(flat + g * op.group, op.group) : 0;
    }
}

// The scales and offsets of the groups of some outputs as floats.
struct Scales {
    const float *scale, *offset;  // [output][segment][groups, padded]
    int64_t groups, per_output;   // padded; segments * groups
};

template <int64_t TYPE, int R, int O> struct Tile {
    Floats total[R][O];

    // `w` of each output; `x` as Prepared has it for these R rows; `next` is how far ahead weights
    // are asked for.
    void run(const Linear& op, const Prepared& p, const char* w, const float* x, int64_t output,
             const Scales& scales, int64_t next) {
        for (int r = 0; r < R; r++)
            for (int o = 0; o < O; o++) total[r][o] = Floats{};
        int64_t bytes = weight_bytes(op), step = op.w_output * (TYPE == NIBBLES ? 2 : size_of(TYPE));
        int64_t segment_step = op.w_segment * (TYPE == NIBBLES ? 2 : size_of(TYPE));
        for (int64_t segment = 0; segment < op.segments; segment++, w += segment_step) {
            if constexpr (TYPE == NIBBLES) {
                x = groups(op, p, w, step, bytes, x, output, segment, scales, next);
            } else if constexpr (TYPE == INT8) {
                x = channels(op, p, w, step, bytes, x, output, segment, next);
            } else {
                x = sum_blocks(total, w, step, bytes, x, next);
            }
        }
    }

    const float* sum_blocks(Floats (&sums)[R][O], const char* w, int64_t step, int64_t bytes,
                            const float* x, int64_t next) {
        int64_t whole = bytes / BLOCK * BLOCK;
        for (int64_t b = 0; b < whole; b += BLOCK, x += VECTORS * R * LANES) {
            for (int o = 0; o < O; o++) __builtin_prefetch(w + o * step + b + next, 0, 2);
            block(sums, w + b, step, x);
        }
        if (whole < bytes) {
            rest(sums, w + whole, step, bytes - whole, x);
            x += VECTORS * R * LANES;
        }
        return x;
    }

    static constexpr int VECTORS = Decoder<TYPE>::VECTORS;

    void rest(Floats (&sums)[R][O], const char* w, int64_t step, int64_t bytes, const float* x) {
        char whole[O][BLOCK] = {};
        for (int o = 0; o < O; o++) std::memcpy(whole[o], w + o * step, bytes);
        block(sums, whole[0], BLOCK, x);
    }

    template <int V = 0>
    static inline void vectors(Floats (&sums)[R][O], const Decoder<TYPE> (&d)[O], const float* x) {
        if constexpr (V < VECTORS) {
            Floats weights[O];
            for (int o = 0; o < O; o++) weights[o] = d[o].template get<V>();
            for (int r = 0; r < R; r++) {
                Floats values = load<Floats>(x + (V * R + r) * LANES);
                for (int o = 0; o < O; o++) sums[r][o] += weights[o] * values;
            }
            vectors<V + 1>(sums, d, x);
        }
    }

    template <int... I>
    static inline void block_of(Floats (&sums)[R][O], const char* w, int64_t step, const float* x,
                                std::integer_sequence<int, I...>) {
        const Decoder<TYPE> d[O] = {Decoder<TYPE>(w + I * step)...};
        vectors(sums, d, x);
    }

    static inline void block(Floats (&sums)[R][O], const char* w, int64_t step, const float* x) {
        block_of(sums, w, step, x, std::make_integer_sequence<int, O>{});
    }

    const float* channels(const Linear& op, const Prepared&, const char* w, int64_t step,
                          int64_t bytes, const float* x, int64_t output, int64_t segment,
                          int64_t next) {
        Floats sums[R][O] = {};
        x = sum_blocks(sums, w, step, bytes, x, next);
        for (int o = 0; o < O; o++) {
            int64_t index = segment * op.scale_segment + (output + o) * op.scale_output;
            Floats scale = splat(load_some(at(op.scale, op.scale_type, index), op.scale_type, 1)[0]);
            for (int r = 0; r < R; r++) total[r][o] += scale * sums[r][o];
        }
        return x;
    }

    const float* groups(const Linear& op, const Prepared& p, const char* w, int64_t step,
                        int64_t bytes, const float* x, int64_t output, int64_t segment,
                        const Scales& scales, int64_t next) {
        const float *scale[O], *offset[O];
        for (int o = 0; o < O; o++) {
            int64_t place = (output + o) * scales.per_output + segment * scales.groups;
            scale[o] = scales.scale + place;
            offset[o] = scales.offset + place;
        }
        Ints lanes;
        for (int lane = 0; lane < LANES; lane++) lanes[lane] = 8 * lane % 128 / op.group;
        bool uniform = op.group >= 128;
        for (int64_t b = 0; b < bytes; b += BLOCK, x += VECTORS * R * LANES) {
            Floats sums[R][O] = {};
            if (bytes - b >= BLOCK) {
                for (int o = 0; o < O; o++) __builtin_prefetch(w + o * step + b + next, 0, 2);
                block(sums, w + b, step, x);
            } else {
                rest(sums, w + b, step, bytes - b, x);
            }
            int64_t group = 2 * b / op.group;
            for (int o = 0; o < O; o++) {
                Floats factor = uniform ? splat(scale[o][group]) : spread(scale[o] + group, lanes);
                for (int r = 0; r < R; r++) total[r][o] += factor * sums[r][o];
            }
        }
        for (int64_t g = 0; g < p.sums; g++, x += R * LANES)
            for (int o = 0; o < O; o++) {
                Floats values = load<Floats>(offset[o] + g * LANES);
                for (int r = 0; r < R; r++) total[r][o] += values * load<Floats>(x + r * LANES);
            }
        return x;
    }

    static Floats spread(const float* from, Ints lanes) {
#ifdef __AVX512F__
        return (Floats)_mm512_permutexvar_ps((__m512i)lanes, _mm512_loadu_ps(from));
#else
        Floats values;
        for (int lane = 0; lane < LANES; lane++) values[lane] = from[lanes[lane]];
        return values;
#endif
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
    Scales scales;
    const char* scale;  // int8: of the part's first output
};

template <int64_t TYPE, int R, int O>
void tiles(const Task& t, const Linear& op, const float* x, int64_t row, int64_t& output) {
    int64_t step = op.w_output * (TYPE == NIBBLES ? 2 : size_of(TYPE));
    for (; output + O <= t.outputs; output += O) {
        Tile<TYPE, R, O> tile;
        tile.run(op, t.prepared, t.w + output * step, x, output, t.scales, O * step);
        for (int r = 0; r < R; r++)
            for (int o = 0; o < O; o++) t.result[(row + r) * t.part + output + o] = sum(tile.total[r][o]);
    }
}

template <int64_t TYPE, int R> void some_rows(const Task& t, const float* x, int64_t row) {
    Linear op = t.op;
    op.scale = t.scale;
    int64_t output = 0;
    if constexpr (R <= 4) tiles<TYPE, R, 4>(t, op, x, row, output);
    if constexpr (R > 4 && !scaled_by_group(TYPE)) tiles<TYPE, R, 2>(t, op, x, row, output);
    tiles<TYPE, R, 1>(t, op, x, row, output);
}

template <int64_t TYPE> void all_rows(const Task& t) {
    const float* x = t.x;
    for (int64_t row = 0; row < t.op.rows; row += MOST_ROWS) {
        int64_t rows = std::min<int64_t>(t.op.rows - row, MOST_ROWS);
        switch (rows) {
            case 1: some_rows<TYPE, 1>(t, x, row); break;
            case 2: some_rows<TYPE, 2>(t, x, row); break;
            case 3: some_rows<TYPE, 3>(t, x, row); break;
            case 4: some_rows<TYPE, 4>(t, x, row); break;
            case 5: some_rows<TYPE, 5>(t, x, row); break;
            case 6: some_rows<TYPE, 6>(t, x, row); break;
            case 7: some_rows<TYPE, 7>(t, x, row); break;
            default: some_rows<TYPE, 8>(t, x, row);
        }
        x += rows * t.prepared.per_segment * t.op.segments * LANES;
    }
}

void products(const Task& t) {
    switch (t.op.w_type) {
        case FLOAT32: return all_rows<FLOAT32>(t);
        case FLOAT16: return all_rows<FLOAT16>(t);
        case BFLOAT16: return all_rows<BFLOAT16>(t);
        case INT8: return all_rows<INT8>(t);
        default: return all_rows<NIBBLES>(t);
    }
}

// Bias, activation and what is added, and the result's type.
void finish(const Task& t, const Place& place, int64_t first) {
    const Linear& op = t.op;
    for (int64_t row = 0; row < op.rows; row++) {
        for (int64_t o = 0; o < t.outputs; o += LANES) {
            int64_t count = std::min<int64_t>(t.outputs - o, LANES);
            Floats y = load<Floats>(t.result + row * t.part + o);
            if (op.bias) {
                int64_t index = place.offset(op.bias_mesh) + first + o;
                y += load_some(at(op.bias, op.bias_type, index), op.bias_type, count);
            }
            if (op.activation) y = op.activation == 1 ? gelu(y) : gelu_exact(y);
            if (op.residual) {
                int64_t index =
                    place.offset(op.residual_mesh) + row * op.residual_row + first + o;
                y += load_some(at(op.residual, op.residual_type, index), op.residual_type, count);
            }
            int64_t index = place.offset(op.out_mesh) + row * op.out_row + first + o;
            store_some(at(op.out, op.out_type, index), op.out_type, y, count);
        }
    }
}

// The scales of some outputs, as floats in `to`.
void read_scales(const Linear& op, const void* from, int64_t mesh, int64_t first, int64_t outputs,
                 int64_t groups, float* to) {
    for (int64_t o = first; o < first + outputs; o++)
        for (int64_t segment = 0; segment < op.segments; segment++, to += groups) {
            int64_t place = mesh + segment * op.scale_segment + o * op.scale_output;
            to_floats(to, at(from, op.scale_type, place), op.scale_type, op.in / op.group);
            std::fill(to + op.in / op.group, to + groups, 0.0f);
        }
}

}  // namespace

void run(const Linear& op, const Share& share) {
    Prepared prepared(op);
    int64_t output_bytes = weight_bytes(op) * op.segments;
    int64_t part = std::clamp<int64_t>(up(PART / output_bytes, LANES), LANES, up(op.outputs, LANES));
    int64_t parts = (op.outputs + part - 1) / part;
    int64_t meshes = count_of(op.mesh);
    // Scales are read 16 at a time, from a group on: so many more must be there.
    int64_t groups = op.w_type == NIBBLES ? up(op.in / op.group, LANES) + LANES : 0;
    int64_t scale_floats = part * op.segments * groups;
    int64_t flat_floats = up(op.in, BLOCK * 2) + LANES;

    float* x = share.room<float>(prepared.floats() + flat_floats + op.rows * part + 2 * scale_floats);
    float* flat = x + prepared.floats();
    float* result = flat + flat_floats;
    float* scale = result + op.rows * part;
    float* offset = scale + scale_floats;

    int64_t prepared_for = -1;
    for (int64_t item = share.next(); item < meshes * parts; item = share.next()) {
        int64_t m = item / parts, first = item % parts * part;
        Place place(op.mesh, m);
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
        Task task{op, prepared, at(op.w, op.w_type, of_w), x, result, part, outputs,
                  Scales{scale, offset, groups, op.segments * groups},
                  op.w_type == INT8
                      ? at(op.scale, op.scale_type, of_scale + first * op.scale_output)
                      : nullptr};
        products(task);
        finish(task, place, first);
    }
}

}  // namespace popxl
