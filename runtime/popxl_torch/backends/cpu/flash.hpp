// Attention of many queries: a block of keys at a time, their weights scaled anew when a larger score
// comes (arXiv 2205.14135). Keys and values are panels for all queries of a part.

#pragma once

#include <limits>

#include "chunk.hpp"
#include "matrix.hpp"

namespace popxl {
namespace {

#ifdef POPXL_PANELS

constexpr int64_t QUERIES = 128;    // of a part
constexpr int64_t KEYS = 128;       // of a block
constexpr int64_t MOST_SIZE = 256;  // of a head

// 2^x to five digits, more than bfloat16 keeps: a polynomial on [-1/2, 1/2], which it meets at
// Chebyshev's points, times a power.
inline Floats power_of_two(Floats x) {
    Floats whole = nearest(x), r = x - whole;
    Floats p = splat(9.66636852e-03f);
    p = p * r + 5.59219758e-02f;
    p = p * r + 2.40223490e-01f;
    p = p * r + 6.93121045e-01f;
    p = p * r + 1.00000000e+00f;
    return times_power_of_two(p, whole);
}

// Queries, keys, values and weights are multiplied as words of pairs of bfloat16, or of a float.
template <int64_t TYPE, Arithmetic HOW> struct Flash {
    const Chunk& op;
    const Part& part;
    float *out, *top, *total;         // [block of 64 elements][query][64], [query], [query]
    float* scores;                    // of MICRO_ROWS queries: [block of 64 keys][query][64]
    float* queries;                   // the same queries as floats, [query][MOST_SIZE]
    char* weights;                    // words, [query][KEYS / A_WORD]
    char *key_panels, *value_panels;  // [block of 64 keys][word][64], [block of 64][word][64]
    float factor, slope;              // what scores and distances are multiplied with
    Floats bias[KEYS / LANES];        // of a block's keys, but for what all keys of a query share
    int64_t words;                    // of elements of a head

    static constexpr int64_t SIZE = size_of(TYPE), A = A_WORD<HOW>;
    static constexpr int64_t OF_SCORES = MICRO_ROWS * OUTPUTS;
    static constexpr int64_t OF_WEIGHTS = 4 * KEYS / A;  // bytes of a query's
    static constexpr float LOG = TYPE == FLOAT32 ? 1.0f : 1.44269504f;  // of e, to the base of powers

    static int64_t floats(const Chunk& op) {
        int64_t size = up(op.size, OUTPUTS);
        return QUERIES * (size + 2) + MICRO_ROWS * (MOST_SIZE + KEYS + KEYS / A) + 2 * KEYS / A * size;
    }

    Flash(const Chunk& op, const Part& part, float* room)
        : op(op), part(part), factor(LOG * float(op.scale)), slope(LOG * part.slope),
          words(op.size / A) {
        int64_t size = up(op.size, OUTPUTS);
        out = room;
        top = out + QUERIES * size;
        total = top + QUERIES;
        scores = total + QUERIES;
        queries = scores + MICRO_ROWS * KEYS;
        weights = reinterpret_cast<char*>(queries + MICRO_ROWS * MOST_SIZE);
        key_panels = weights + MICRO_ROWS * OF_WEIGHTS;
        value_panels = key_panels + 4 * KEYS / A * size;
        for (int64_t key = 0; key < KEYS; key++) bias[key / LANES][key % LANES] = alibi_bias(slope, float(key));
    }

    // How many keys a query sees.
    int64_t seen(int64_t row) const {
        return std::clamp<int64_t>(part.position + row + 1, 1, op.length);
    }

    void run() const {
        std::fill(out, top, 0.0f);
        std::fill(top, total, -1e30f);
        std::fill(total, scores, 0.0f);
        int64_t limit = seen(part.rows - 1);
        for (int64_t key = 0; key < limit; key += KEYS) {
            int64_t count = std::min(KEYS, limit - key), row = 0;
            for (int64_t block = 0; block < count; block += OUTPUTS) bring_keys(key, block, count);
            for (int64_t i = 0; i < op.size; i += OUTPUTS) bring_values(key, i, count);
            while (seen(row) <= key) row++;
            for (; row < part.rows; row += MICRO_ROWS)
                attend(row, std::min<int64_t>(part.rows - row, MICRO_ROWS), key, count);
        }
        finish();
    }

    // Some queries, from `row` on, and a block of keys that at least the last of them sees.
    void attend(int64_t row, int64_t rows, int64_t key, int64_t count) const {
        int64_t most = std::min(count, seen(row + rows - 1) - key), step = SIZE * op.q_token;
        const char* from = part.q + row * step;
        if (HOW == AS_FLOATS && TYPE != FLOAT32) {
            bring_floats<TYPE>(queries, MOST_SIZE, from, step, rows, op.size);
            from = reinterpret_cast<const char*>(queries), step = 4 * MOST_SIZE;
        }
        for (int64_t block = 0; block < most; block += OUTPUTS)
            micro_rows<HOW, true>(rows, scores + block / OUTPUTS * OF_SCORES, from, step,
                                  key_panels + 4 * block * words, words);
        for (int64_t r = 0; r < rows; r++) {
            int64_t mine = std::clamp<int64_t>(seen(row + r) - key, 0, most), first = mine / LANES * LANES;
            std::memset(weights + r * OF_WEIGHTS + first * 4 / A, 0, (up(most, LANES) - first) * 4 / A);
            weigh_some(r, row + r, key, mine);
        }
        for (int64_t i = 0; i < op.size; i += OUTPUTS)
            micro_rows<HOW, false>(rows, out + (i / OUTPUTS * QUERIES + row) * OUTPUTS, weights,
                                   OF_WEIGHTS, value_panels + 4 * KEYS / A * i, up(most, A) / A);
    }

    void weigh_some(int64_t r, int64_t row, int64_t key, int64_t count) const {
        switch (up(count, LANES) / LANES) {
            case 0: return;
            case 1: return weigh<1>(r, row, key, count);
            case 2: return weigh<2>(r, row, key, count);
            case 3: return weigh<3>(r, row, key, count);
            case 4: return weigh<4>(r, row, key, count);
            case 5: return weigh<5>(r, row, key, count);
            case 6: return weigh<6>(r, row, key, count);
            case 7: return weigh<7>(r, row, key, count);
            default: return weigh<8>(r, row, key, count);
        }
    }

    // Makes V vectors of scores weights, relative to the query's largest score so far.
    template <int V> void weigh(int64_t r, int64_t row, int64_t key, int64_t count) const {
        static_assert(KEYS == 8 * LANES);
        __mmask16 last = 0xffff >> (V * LANES - count);
        float shared = alibi_bias(slope, float(key - part.position - row));
        Floats score[V], largest, sums = {};
        for (int v = 0; v < V; v++) {
            const float* from = scores + v / VECTORS * OF_SCORES + r * OUTPUTS + v % VECTORS * LANES;
            score[v] = load<Floats>(from) * factor + bias[v];
            if (v + 1 == V)
                score[v] = (Floats)_mm512_mask_blend_ps(last, (__m512)splat(-1e30f), (__m512)score[v]);
            largest = v ? greatest(largest, score[v]) : score[v];
        }
        float before = top[row], now = std::max(before, _mm512_reduce_max_ps((__m512)largest) + shared);
        for (int v = 0; v < V; v++) {
            Floats weight = power(score[v] + (shared - now));
            if (v + 1 == V) weight = (Floats)_mm512_maskz_mov_ps(last, (__m512)weight);
            sums += weight;
            store_floats(weights + r * OF_WEIGHTS + v * LANES * 4 / A, A == 2 ? BFLOAT16 : FLOAT32, weight);
        }
        float added = _mm512_reduce_add_ps((__m512)sums);
        if (now > before) rescale(row, power(splat(before - now))[0]);
        total[row] += added;
        top[row] = now;
    }

    static Floats power(Floats x) { return TYPE == FLOAT32 ? exp(x) : power_of_two(x); }

    // What a query has so far, relative to a larger score.
    void rescale(int64_t row, float kept) const {
        for (int64_t i = 0; i < op.size; i += LANES) {
            float* place = out + (i / OUTPUTS * QUERIES + row) * OUTPUTS + i % OUTPUTS;
            store(place, load<Floats>(place) * kept);
        }
        total[row] *= kept;
    }

    // The panel of up to 64 keys, from number `block` of those at `key` on.
    void bring_keys(int64_t key, int64_t block, int64_t count) const {
        const char* keys = part.keys + SIZE * key * op.keys_token;
        for (int64_t n = 0; n < OUTPUTS; n += LANES)
            for (int64_t p = 0; p < words; p += LANES) {
                int64_t some = std::min<int64_t>(LANES, words - p);
                __m512i v[LANES];
                for (int64_t i = 0; i < LANES; i++) {  // those that are not there are not looked at
                    const char* from = keys + SIZE * std::min(block + n + i, count - 1) * op.keys_token;
                    v[i] = HOW == AS_PAIRS
                               ? _mm512_maskz_loadu_epi16(~0u >> (32 - 2 * some), from + 4 * p)
                               : (__m512i)some_floats(TYPE, from, p, 0xffff >> (LANES - some));
                }
                transpose(v);
                char* to = key_panels + 4 * (block * words + p * OUTPUTS + n);
                for (int64_t i = 0; i < some; i++) _mm512_storeu_si512(to + 4 * i * OUTPUTS, v[i]);
            }
    }

    // The panel of 64 elements, from `i` on, of the values at `key`.
    void bring_values(int64_t key, int64_t i, int64_t count) const {
        const char* values = part.values + SIZE * key * op.values_token;
        char* panel = value_panels + 4 * KEYS / A * i;
        for (int64_t t = 0; t < up(count, A); t += A)
            for (int64_t j = 0; j < OUTPUTS; j += LANES) {
                Floats word = value(values, t, count, i + j);
                if (A == 2)  // two bfloat16, the first one in the lower half
                    word = as_floats(as_words(word) >> 16 |
                                     as_words(value(values, t + 1, count, i + j)));
                store(panel + 4 * (t / A * OUTPUTS + j), word);
            }
    }

    // 16 elements of a value; zeros beyond the last token and element.
    Floats value(const char* values, int64_t t, int64_t count, int64_t i) const {
        int64_t left = t < count ? std::clamp<int64_t>(op.size - i, 0, LANES) : 0;
        return some_floats(TYPE, values + SIZE * t * op.values_token, i, (1u << left) - 1);
    }

    void finish() const {
        for (int64_t row = 0; row < part.rows; row++)
            for (int64_t i = 0; i < op.size; i += LANES) {
                Floats sums = load<Floats>(out + (i / OUTPUTS * QUERIES + row) * OUTPUTS + i % OUTPUTS);
                store_some(part.out + SIZE * (row * op.out_token + i), TYPE, sums / total[row],
                           op.size - i);
            }
    }
};

template <int64_t TYPE, Arithmetic HOW = AS_FLOATS>
void run_blocks(const Chunk& op, const Worker& worker) {
    typedef Flash<TYPE, HOW> Blocks;
    float* room = worker.room<float>(Blocks::floats(op));
    for_each_part(op, worker, QUERIES, [&](const Part& part) { Blocks(op, part, room).run(); });
}

void run_flash(const Chunk& op, const Worker& worker) {
#ifdef POPXL_PAIRS
    if (op.type == BFLOAT16 && op.size % 2 == 0) return run_blocks<BFLOAT16, AS_PAIRS>(op, worker);
#endif
    switch (op.type) {
        case FLOAT32: return run_blocks<FLOAT32>(op, worker);
        case FLOAT16: return run_blocks<FLOAT16>(op, worker);
        case BFLOAT16: return run_blocks<BFLOAT16>(op, worker);
    }
}

#endif

}  // namespace
}  // namespace popxl
