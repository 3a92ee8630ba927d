// Products of few rows with a weight whose outputs are rows of memory: every weight is read once.
//
// A row's result is one chain of sums in a fixed order, whatever the number of rows.

#pragma once

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
constexpr int64_t PART = 32 << 10;  // bytes of weights that a thread takes at a time
constexpr int64_t AHEAD = 2048;     // bytes of an output's weights to ask for ahead of their use

// How weights and activations are multiplied: as floats, or as pairs of bfloat16 whose two products
// are added to a float by one instruction. There an activation is the sum of so many terms.
constexpr int AS_FLOATS = 0;
#ifdef __AVX512BF16__
constexpr bool HAS_PAIRS = true;
#else
constexpr bool HAS_PAIRS = false;
#endif

constexpr float BASE = 16;  // added to numbers of 4 bits that are multiplied as pairs

int terms_of(const Linear& op) {
    bool same = op.x_type == BFLOAT16 && op.w_type == BFLOAT16;
    if (!HAS_PAIRS || !(same || op.w_type == NIBBLES)) return AS_FLOATS;
    return op.x_type == BFLOAT16 ? 1 : op.x_type == FLOAT16 ? 2 : 3;  // 8, 11 and 24 bits
}

inline Floats add_products(Floats sums, Floats weights, Floats values, bool pairs) {
#ifdef __AVX512BF16__
    if (pairs) return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)weights, (__m512bh)values);
#endif
    return sums + weights * values;
}

// For each type: how many vectors a block makes, which element number `i` of vector v is, and the
// vectors themselves.
template <int64_t TYPE, bool PAIRS> struct Decoder;

template <> struct Decoder<FLOAT32, false> {
    static constexpr int VECTORS = 1;
    static int element(int, int i) { return i; }
    Floats raw;
    explicit Decoder(const char* from) : raw(load<Floats>(from)) {}
    template <int V> Floats get() const { return raw; }
};

template <> struct Decoder<FLOAT16, false> {
    static constexpr int VECTORS = 2;
    static int element(int v, int i) { return v * LANES + i; }
    const char* from;
    explicit Decoder(const char* from) : from(from) {}
    template <int V> Floats get() const { return from_float16(load<Halves>(from + 32 * V)); }
};

template <> struct Decoder<BFLOAT16, false> {  // even elements, then odd ones
    static constexpr int VECTORS = 2;
    static int element(int v, int i) { return 2 * i + v; }
    Words raw;
    explicit Decoder(const char* from) : raw(load<Words>(from)) {}
    template <int V> Floats get() const { return as_floats(V ? raw & 0xffff0000 : raw << 16); }
};

template <> struct Decoder<BFLOAT16, true> {
    static constexpr int VECTORS = 1;
    static int element(int, int i) { return i; }
    Floats raw;
    explicit Decoder(const char* from) : raw(load<Floats>(from)) {}
    template <int V> Floats get() const { return raw; }
};

template <> struct Decoder<INT8, false> {
    static constexpr int VECTORS = 4;
    static int element(int v, int i) { return v * LANES + i; }
    const char* from;
    explicit Decoder(const char* from) : from(from) {}
    template <int V> Floats get() const { return from_int8(load<Bytes>(from + 16 * V)); }
};

template <> struct Decoder<NIBBLES, false> {  // a 16-bit word has four numbers, the first one highest
    static constexpr int VECTORS = 8;
    static int element(int v, int i) { return 8 * i + (v & 4) + 3 - (v & 3); }
    Words raw;
    explicit Decoder(const char* from) : raw(load<Words>(from)) {}
    template <int V> Floats get() const {
        return __builtin_convertvector((Ints)(raw >> (4 * V) & 15), Floats);
    }
};

#ifdef __AVX512BF16__
template <> struct Decoder<NIBBLES, true> {  // BASE is added: it makes a number four bits of 16 to 31
    static constexpr int VECTORS = 4;
    static int element(int v, int i) { return 4 * i + 3 - v; }
    __m512i raw;
    explicit Decoder(const char* from) : raw(_mm512_loadu_si512(from)) {}
    template <int V> Floats get() const {
        __m512i number = V ? _mm512_srli_epi16(raw, 4 * V - 3) : _mm512_slli_epi16(raw, 3);
        __m512i bits = _mm512_set1_epi16(0xf << 3), sixteen = _mm512_set1_epi16(0x4180);
        return (Floats)_mm512_ternarylogic_epi32(number, bits, sixteen, 0xea);  // a & b | c
    }
};
#endif

int64_t elements_per_block(int64_t type) {
    return type == FLOAT32 ? 16 : type == INT8 ? 64 : type == NIBBLES ? 128 : 32;
}

int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Bytes of one segment of one output's weights.
int64_t weight_bytes(const Linear& op) {
    return op.w_type == NIBBLES ? op.in / 2 : op.in * size_of(op.w_type);
}

// The activations as the decoders order the weights, in vectors of 64 bytes,
// [segment][block][vector][term][row], and for groups their sums as floats behind each segment,
// [group / 16][row].
struct Prepared {
    const Linear& op;
    int64_t blocks, sums, per_segment;  // per row, in vectors
    int vectors, terms;

    explicit Prepared(const Linear& op) : op(op), terms(terms_of(op)) {
        int64_t per_block = elements_per_block(op.w_type);
        vectors = terms ? per_block / (2 * LANES) * terms : per_block / LANES;
        blocks = (op.in + per_block - 1) / per_block;
        sums = op.w_type == NIBBLES ? up(op.in / op.group, LANES) / LANES : 0;
        per_segment = blocks * vectors + sums;
    }

    int64_t floats() const { return per_segment * op.segments * op.rows * LANES; }
};

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

// Brings a row into the order of the weights; `step` floats from one vector to the next.
template <int64_t TYPE, int TERMS> void order(float* to, int64_t step, const float* from,
                                              int64_t blocks) {
    typedef Decoder<TYPE, TERMS != AS_FLOATS> D;
    constexpr int HALVES = TERMS ? 2 : 1, PER_VECTOR = HALVES * LANES;
    int32_t places[D::VECTORS][HALVES][LANES];  // of pairs, all the first ones, then the second
    for (int v = 0; v < D::VECTORS; v++)
        for (int i = 0; i < PER_VECTOR; i++) places[v][i % HALVES][i / HALVES] = D::element(v, i);
    for (int64_t block = 0; block < blocks; block++, from += D::VECTORS * PER_VECTOR) {
        for (int v = 0; v < D::VECTORS; v++) {
            if constexpr (TERMS == AS_FLOATS) {
                bool in_order = places[v][0][1] == places[v][0][0] + 1;
                store(to, in_order ? load<Floats>(from + v * LANES) : pick(from, places[v][0]));
                to += step;
            } else {
                Floats first = pick(from, places[v][0]), second = pick(from, places[v][1]);
                for (int term = 0; term < TERMS; term++, to += step) {
                    Words low = __builtin_convertvector(to_bfloat16(first), Words);
                    Words high = __builtin_convertvector(to_bfloat16(second), Words) << 16;
                    store(to, low | high);
                    first -= as_floats(low << 16);
                    second -= as_floats(high);
                }
            }
        }
    }
}

void order_row(const Prepared& p, float* to, int64_t step, const float* flat) {
    switch (p.op.w_type * 4 + p.terms) {
        case FLOAT32 * 4: return order<FLOAT32, AS_FLOATS>(to, step, flat, p.blocks);
        case FLOAT16 * 4: return order<FLOAT16, AS_FLOATS>(to, step, flat, p.blocks);
        case BFLOAT16 * 4: return order<BFLOAT16, AS_FLOATS>(to, step, flat, p.blocks);
        case INT8 * 4: return order<INT8, AS_FLOATS>(to, step, flat, p.blocks);
        case NIBBLES * 4: return order<NIBBLES, AS_FLOATS>(to, step, flat, p.blocks);
#ifdef __AVX512BF16__
        case BFLOAT16 * 4 + 1: return order<BFLOAT16, 1>(to, step, flat, p.blocks);
        case NIBBLES * 4 + 1: return order<NIBBLES, 1>(to, step, flat, p.blocks);
        case NIBBLES * 4 + 2: return order<NIBBLES, 2>(to, step, flat, p.blocks);
        case NIBBLES * 4 + 3: return order<NIBBLES, 3>(to, step, flat, p.blocks);
#endif
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
        order_row(p, to, step, flat);
        to += p.blocks * p.vectors * step;
        for (int64_t first = 0; first < p.sums * LANES; first += LANES, to += step)
            for (int64_t g = first; g < first + LANES; g++)
                to[g - first] = g < op.in / op.group ? group_sum(flat + g * op.group, op.group) : 0;
    }
}

// The scales and offsets of the groups of some outputs as floats, and which of them a block's
// elements have: one, or one for each lane.
struct Scales {
    const float *scale, *offset;  // [output][segment][groups, padded]
    int64_t groups, per_output;   // padded; segments * groups
    bool uniform;
    int shift;           // of a block's place in bytes, to the number of its group
    int64_t per_block;   // groups in a block
    Ints lanes;

    Scales(const Linear& op, const float* scale, const float* offset, int64_t groups)
        : scale(scale), offset(offset), groups(groups), per_output(op.segments * groups) {
        if (op.w_type != NIBBLES) return;
        uniform = op.group >= 128;
        shift = __builtin_ctzll(op.group) - 1;
        per_block = 128 / op.group;
        for (int lane = 0; lane < LANES; lane++) lanes[lane] = 8 * lane % 128 / op.group;
    }
};

template <int64_t TYPE, int TERMS, int R, int O> struct Tile {
    static constexpr bool PAIRS = TERMS != AS_FLOATS;
    static constexpr int COPIES = PAIRS ? TERMS : 1;
    typedef Decoder<TYPE, PAIRS> D;
    static constexpr int VECTORS = D::VECTORS;
    static constexpr int64_t BLOCK_FLOATS = VECTORS * COPIES * R * LANES;

    Floats total[R][O];

    // `w` of each output; `x` as Prepared has it for these R rows.
    void run(const Linear& op, const Prepared& p, const char* w, const float* x, int64_t output,
             const Scales& scales) {
        for (int r = 0; r < R; r++)
            for (int o = 0; o < O; o++) total[r][o] = Floats{};
        int64_t bytes = weight_bytes(op), step = op.w_output * (TYPE == NIBBLES ? 2 : size_of(TYPE));
        int64_t segment_step = op.w_segment * (TYPE == NIBBLES ? 2 : size_of(TYPE));
        for (int64_t segment = 0; segment < op.segments; segment++, w += segment_step) {
            if constexpr (TYPE == NIBBLES) {
                x = groups(op, p, w, step, bytes, x, output, segment, scales);
            } else if constexpr (TYPE == INT8) {
                x = channels(op, p, w, step, bytes, x, output, segment);
            } else {
                x = sum_blocks(total, w, step, bytes, x);
            }
        }
    }

    // Of the same outputs, or near their end of those that come next.
    static inline void ask_ahead(const char* w, int64_t step, int64_t bytes, int64_t done) {
        int64_t ahead = std::min(bytes, AHEAD);
        ahead = done < bytes - ahead ? ahead : O * step + ahead - bytes;
        for (int o = 0; o < O; o++) __builtin_prefetch(w + o * step + ahead, 0, 3);
    }

    const float* sum_blocks(Floats (&sums)[R][O], const char* w, int64_t step, int64_t bytes,
                            const float* x) {
        int64_t whole = bytes / BLOCK * BLOCK;
        for (int64_t b = 0; b < whole; b += BLOCK, x += BLOCK_FLOATS) {
            ask_ahead(w + b, step, bytes, b);
            block(sums, w + b, step, x);
        }
        if (whole < bytes) {
            rest(sums, w + whole, step, bytes - whole, x);
            x += BLOCK_FLOATS;
        }
        return x;
    }

    void rest(Floats (&sums)[R][O], const char* w, int64_t step, int64_t bytes, const float* x) {
        char whole[O][BLOCK] = {};
        for (int o = 0; o < O; o++) std::memcpy(whole[o], w + o * step, bytes);
        block(sums, whole[0], BLOCK, x);
    }

    template <int V = 0>
    static inline void vectors(Floats (&sums)[R][O], const D (&d)[O], const float* x) {
        if constexpr (V < VECTORS) {
            Floats weights[O];
            for (int o = 0; o < O; o++) weights[o] = d[o].template get<V>();
            for (int term = 0; term < COPIES; term++)
                for (int r = 0; r < R; r++) {
                    Floats values = load<Floats>(x + ((V * COPIES + term) * R + r) * LANES);
                    for (int o = 0; o < O; o++)
                        sums[r][o] = add_products(sums[r][o], weights[o], values, PAIRS);
                }
            vectors<V + 1>(sums, d, x);
        }
    }

    template <int... I>
    static inline void block_of(Floats (&sums)[R][O], const char* w, int64_t step, const float* x,
                                std::integer_sequence<int, I...>) {
        const D d[O] = {D(w + I * step)...};
        vectors(sums, d, x);
    }

    static inline void block(Floats (&sums)[R][O], const char* w, int64_t step, const float* x) {
        block_of(sums, w, step, x, std::make_integer_sequence<int, O>{});
    }

    const float* channels(const Linear& op, const Prepared&, const char* w, int64_t step,
                          int64_t bytes, const float* x, int64_t output, int64_t segment) {
        Floats sums[R][O] = {};
        x = sum_blocks(sums, w, step, bytes, x);
        for (int o = 0; o < O; o++) {
            int64_t index = segment * op.scale_segment + (output + o) * op.scale_output;
            Floats scale = splat(load_some(at(op.scale, op.scale_type, index), op.scale_type, 1)[0]);
            for (int r = 0; r < R; r++) total[r][o] += scale * sums[r][o];
        }
        return x;
    }

    const float* groups(const Linear& op, const Prepared& p, const char* w, int64_t step,
                        int64_t bytes, const float* x, int64_t output, int64_t segment,
                        const Scales& scales) {
        const float *scale[O], *offset[O];
        for (int o = 0; o < O; o++) {
            int64_t place = (output + o) * scales.per_output + segment * scales.groups;
            scale[o] = scales.scale + place;
            offset[o] = scales.offset + place;
        }
        Floats all[R][O];  // in registers, which members are not
        for (int r = 0; r < R; r++)
            for (int o = 0; o < O; o++) all[r][o] = total[r][o];
        for (int64_t b = 0; b < bytes; b += BLOCK, x += BLOCK_FLOATS) {
            Floats sums[R][O] = {};
            if (bytes - b >= BLOCK) {
                ask_ahead(w + b, step, bytes, b);
                block(sums, w + b, step, x);
            } else {
                rest(sums, w + b, step, bytes - b, x);
            }
            int64_t group = scales.uniform ? b >> scales.shift : b / BLOCK * scales.per_block;
            for (int o = 0; o < O; o++) {
                Floats factor = scales.uniform ? splat(scale[o][group])
                                               : spread(scale[o] + group, scales.lanes);
                for (int r = 0; r < R; r++) all[r][o] += factor * sums[r][o];
            }
        }
        for (int64_t g = 0; g < p.sums; g++, x += R * LANES)
            for (int o = 0; o < O; o++) {
                Floats values = load<Floats>(offset[o] + g * LANES);
                for (int r = 0; r < R; r++) all[r][o] += values * load<Floats>(x + r * LANES);
            }
        for (int r = 0; r < R; r++)
            for (int o = 0; o < O; o++) total[r][o] = all[r][o];
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
    const Scales& scales;
    const char* scale;  // int8: of the part's first output
};

template <int64_t TYPE, int TERMS, int R, int O>
void tiles(const Task& t, const Linear& op, const float* x, int64_t row, int64_t& output) {
    int64_t step = op.w_output * (TYPE == NIBBLES ? 2 : size_of(TYPE));
    for (; output + O <= t.outputs; output += O) {
        Tile<TYPE, TERMS, R, O> tile;
        tile.run(op, t.prepared, t.w + output * step, x, output, t.scales);
        Floats totals[(R * O + 3) / 4 * 4] = {};
        for (int i = 0; i < R * O; i++) totals[i] = tile.total[i / O][i % O];
        for (int i = 0; i < R * O; i += 4) {
            float sums[4];
            sums_of_four(totals + i, sums);
            for (int j = i; j < std::min(i + 4, R * O); j++)
                t.result[(row + j / O) * t.part + output + j % O] = sums[j - i];
        }
    }
}

template <int64_t TYPE, int TERMS, int R> void some_rows(const Task& t, const float* x, int64_t row) {
    Linear op = t.op;
    op.scale = t.scale;
    int64_t output = 0;
    constexpr int SUMS = TYPE == NIBBLES || TYPE == INT8 ? 2 * R : R;  // registers an output
    constexpr int O = SUMS <= 4 ? 4 : SUMS <= 8 ? 2 : 1;
    tiles<TYPE, TERMS, R, O>(t, op, x, row, output);
    if constexpr (O > 1) tiles<TYPE, TERMS, R, 1>(t, op, x, row, output);
}

template <int64_t TYPE, int TERMS = AS_FLOATS> void all_rows(const Task& t) {
    const float* x = t.x;
    for (int64_t row = 0; row < t.op.rows; row += MOST_ROWS) {
        int64_t rows = std::min<int64_t>(t.op.rows - row, MOST_ROWS);
        switch (rows) {
            case 1: some_rows<TYPE, TERMS, 1>(t, x, row); break;
            case 2: some_rows<TYPE, TERMS, 2>(t, x, row); break;
            case 3: some_rows<TYPE, TERMS, 3>(t, x, row); break;
            case 4: some_rows<TYPE, TERMS, 4>(t, x, row); break;
            case 5: some_rows<TYPE, TERMS, 5>(t, x, row); break;
            case 6: some_rows<TYPE, TERMS, 6>(t, x, row); break;
            case 7: some_rows<TYPE, TERMS, 7>(t, x, row); break;
            default: some_rows<TYPE, TERMS, 8>(t, x, row);
        }
        x += rows * t.prepared.per_segment * t.op.segments * LANES;
    }
}

void products(const Task& t) {
    switch (t.op.w_type * 4 + t.prepared.terms) {
        case FLOAT32 * 4: return all_rows<FLOAT32>(t);
        case FLOAT16 * 4: return all_rows<FLOAT16>(t);
        case BFLOAT16 * 4: return all_rows<BFLOAT16>(t);
        case INT8 * 4: return all_rows<INT8>(t);
#ifdef __AVX512BF16__
        case BFLOAT16 * 4 + 1: return all_rows<BFLOAT16, 1>(t);
        case NIBBLES * 4 + 1: return all_rows<NIBBLES, 1>(t);
        case NIBBLES * 4 + 2: return all_rows<NIBBLES, 2>(t);
        case NIBBLES * 4 + 3: return all_rows<NIBBLES, 3>(t);
#else
        case NIBBLES * 4: return all_rows<NIBBLES>(t);
#endif
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

// The scales of some outputs, as floats in `to`, `groups` for each segment.
void read_scales(const Linear& op, const void* from, int64_t mesh, int64_t first, int64_t outputs,
                 int64_t groups, float* to) {
    int64_t count = op.in / op.group, place = mesh + first * op.scale_output;
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

    explicit Parts(const Linear& op) {
        int64_t bytes = weight_bytes(op) * op.segments;
        outputs = std::clamp<int64_t>(up(PART / bytes, LANES), LANES, up(op.outputs, LANES));
        count = (op.outputs + outputs - 1) / outputs;
        items = count_of(op.mesh) * count;
    }
};

}  // namespace

void run(const Linear& op, const Share& share) {
    Prepared prepared(op);
    Parts parts(op);
    int64_t part = parts.outputs, items = parts.items;
    int64_t groups = op.w_type == NIBBLES ? up(op.in / op.group, LANES) : 0;
    int64_t scale_floats = part * op.segments * groups + LANES;  // 16 are read from any one on
    int64_t flat_floats = up(op.in, BLOCK * 2) + LANES;

    float* x = share.room<float>(prepared.floats() + flat_floats + op.rows * part + 2 * scale_floats);
    float* flat = x + prepared.floats();
    float* result = flat + flat_floats;
    float* scale = result + op.rows * part;
    float* offset = scale + scale_floats;

    int64_t prepared_for = -1;
    for (int64_t item = share.next(items); item >= 0; item = share.next(items)) {
        int64_t m = item / parts.count, first = item % parts.count * part;
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
            if (prepared.terms)
                for (int64_t i = 0; i < outputs * op.segments * groups; i++)
                    offset[i] -= BASE * scale[i];
        }
        Scales scales(op, scale, offset, groups);
        Task task{op, prepared, at(op.w, op.w_type, of_w), x, result, part, outputs,
                  scales,
                  op.w_type == INT8
                      ? at(op.scale, op.scale_type, of_scale + first * op.scale_output)
                      : nullptr};
        products(task);
        finish(task, place, first);
    }
}

void fetch(const Linear& op, const Share& share) {
    Parts parts(op);
    int64_t item = share.begin(parts.items, share.thread);
    Place place(op.mesh, item / parts.count);
    int64_t first = item % parts.count * parts.outputs * op.w_output;
    const char* w = at(op.w, op.w_type, place.offset(op.w_mesh) + first);
    for (int64_t b = 0; b < PART / 2; b += BLOCK) __builtin_prefetch(w + b, 0, 2);
}

}  // namespace popxl
