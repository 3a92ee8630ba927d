// Attention of many queries in bfloat16: a block of keys at a time, their weights scaled anew when a
// larger score comes (arXiv 2205.14135). Keys and values are panels for all queries of a part.

#pragma once

#include <limits>

#include "chunk.hpp"
#include "matrix.hpp"

namespace popxl {
namespace {

#ifdef __AVX512BF16__

constexpr int64_t QUERIES = 128;    // of a part
constexpr int64_t KEYS = OUTPUTS;   // of a block
constexpr int64_t MOST_SIZE = 256;  // of a head

struct Flash {
    const Chunk& op;
    const Part& part;
    float *scores, *out, *top, *total;  // [query][KEYS], [block of 64][query][64], [query], [query]
    uint16_t* weights;                  // [query][KEYS], bfloat16
    char* panel;

    static bool fits(const Chunk& op) {
        return op.type == BFLOAT16 && op.size % 2 == 0 && op.size <= MOST_SIZE;
    }

    static int64_t floats(const Chunk& op) {
        return QUERIES * (KEYS + up(op.size, OUTPUTS) + 2 + KEYS / 2) + PAIRS * OUTPUTS;
    }

    Flash(const Chunk& op, const Part& part, float* room) : op(op), part(part) {
        scores = room;
        out = scores + QUERIES * KEYS;
        top = out + QUERIES * up(op.size, OUTPUTS);
        total = top + QUERIES;
        weights = reinterpret_cast<uint16_t*>(total + QUERIES);
        panel = reinterpret_cast<char*>(weights + QUERIES * KEYS);
    }

    void run() const {
        std::fill(out, total + QUERIES, 0.0f);
        std::fill(top, total, -std::numeric_limits<float>::max());
        int64_t limit = std::clamp<int64_t>(op.position + part.first + part.rows, 1, op.length);
        for (int64_t key = 0; key < limit; key += KEYS) {
            int64_t count = std::min(KEYS, limit - key);
            // the first query that sees a key of the block; all do where positions are beyond the cache
            int64_t first = std::clamp<int64_t>(key - op.position - part.first, 0, part.rows - 1);
            find_scores(key, count, first);
            for (int64_t row = first; row < part.rows; row++) weigh(row, key, count);
            add_values(key, count, first);
        }
        for (int64_t row = 0; row < part.rows; row++)
            for (int64_t i = 0; i < op.size; i += LANES) {
                Floats sums = load<Floats>(out + (i / OUTPUTS * QUERIES + row) * OUTPUTS + i % OUTPUTS);
                store_some(part.out + 2 * (row * op.out_token + i), BFLOAT16, sums / total[row],
                           op.size - i);
            }
    }

    void find_scores(int64_t key, int64_t count, int64_t first) const {
        const char* keys = part.keys + 2 * key * op.keys_token;
        for (int64_t n = 0; n < KEYS; n += LANES)
            for (int64_t p = 0; p < op.size / 2; p += LANES) {
                int64_t pairs = std::min<int64_t>(LANES, op.size / 2 - p);
                __m512i v[LANES];
                for (int64_t i = 0; i < LANES; i++)  // those that are not there are not looked at
                    v[i] = _mm512_maskz_loadu_epi16(
                        ~0u >> (32 - 2 * pairs),
                        keys + 2 * std::min(n + i, count - 1) * op.keys_token + 4 * p);
                Panels::put(v, panel + 4 * (p * OUTPUTS + n), pairs);
            }
        std::fill(scores + first * KEYS, scores + part.rows * KEYS, 0.0f);
        for (int64_t row = first; row < part.rows; row += MICRO_ROWS)
            micro_rows(std::min<int64_t>(part.rows - row, MICRO_ROWS), scores + row * KEYS,
                       part.q + 2 * row * op.q_token, 2 * op.q_token, panel, op.size / 2);
    }

    // Makes a query's scores weights, relative to the largest so far.
    void weigh(int64_t row, int64_t key, int64_t count) const {
        int64_t at = op.position + part.first + row;
        int64_t seen = std::min(count, std::clamp<int64_t>(at + 1, 1, op.length) - key);
        float factor = 1.0f / std::sqrt(float(op.size)), least = -std::numeric_limits<float>::max();
        Floats lanes, score[KEYS / LANES], largest = splat(top[row]);
        for (int lane = 0; lane < LANES; lane++) lanes[lane] = lane;
        for (int v = 0; v < KEYS / LANES; v++) {
            Floats place = lanes + float(v * LANES);
            Floats biased = load<Floats>(scores + row * KEYS + v * LANES) * factor +
                            (place + float(key - at)) * part.slope;
            score[v] = place < float(seen) ? biased : splat(least);
            largest = greatest(largest, score[v]);
        }
        float now = _mm512_reduce_max_ps((__m512)largest);
        Floats sums = {};
        for (int v = 0; v < KEYS / LANES; v++) {
            Floats weight = exp(score[v] - now);
            weight = lanes + float(v * LANES) < float(seen) ? weight : Floats{};
            sums += weight;
            store(weights + row * KEYS + v * LANES, to_bfloat16(weight));
        }
        float kept = exp(splat(top[row] - now))[0];
        if (now > top[row])
            for (int64_t i = 0; i < op.size; i += OUTPUTS)
                for (int j = 0; j < VECTORS; j++) {
                    float* place = out + (i / OUTPUTS * QUERIES + row) * OUTPUTS + j * LANES;
                    store(place, load<Floats>(place) * kept);
                }
        total[row] = total[row] * kept + sum(sums);
        top[row] = now;
    }

    void add_values(int64_t key, int64_t count, int64_t first) const {
        const char* values = part.values + 2 * key * op.values_token;
        for (int64_t i = 0; i < op.size; i += OUTPUTS) {
            for (int64_t t = 0; t < up(count, 2); t += 2)
                for (int64_t j = 0; j < OUTPUTS; j += LANES) {
                    Words even = value(values, t, count, i + j), odd = value(values, t + 1, count, i + j);
                    store(panel + 4 * (t / 2 * OUTPUTS + j), even | odd << 16);
                }
            float* sums = out + i / OUTPUTS * QUERIES * OUTPUTS;
            for (int64_t row = first; row < part.rows; row += MICRO_ROWS)
                micro_rows(std::min<int64_t>(part.rows - row, MICRO_ROWS), sums + row * OUTPUTS,
                           reinterpret_cast<const char*>(weights + row * KEYS), 2 * KEYS, panel,
                           up(count, 2) / 2);
        }
    }

    // 16 elements of a value as words; zeros beyond the last token and element.
    Words value(const char* values, int64_t t, int64_t count, int64_t i) const {
        int64_t left = t < count ? std::clamp<int64_t>(op.size - i, 0, LANES) : 0;
        return (Words)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(
            __mmask16((1u << left) - 1), values + 2 * (t * op.values_token + i)));
    }
};

void run_flash(const Chunk& op, const Share& share) {
    float* room = share.room<float>(Flash::floats(op));
    for_each_part(op, share, QUERIES,
                  [&](const Part& part) { Flash(op, part, room).run(); });
}

#endif

}  // namespace
}  // namespace popxl
