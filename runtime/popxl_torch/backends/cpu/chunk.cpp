// Attention of a chunk of tokens of one row. Scores are products of few rows: queries times keys.

#include <algorithm>
#include <limits>

#include "flash.hpp"
#include "linear.cpp"

namespace popxl {

namespace {

// A few queries of one head.
struct Queries {
    const Chunk& op;
    int64_t rows, at, limit, padded;  // position of the first; keys up to `limit` are seen by the last
    float slope;
    float *x, *flat, *scores;  // scores: [rows][padded]

    int64_t seen(int64_t row) const {
        return std::clamp<int64_t>(at + row + 1, 1, op.length);
    }

    void find_scores(const char* q, const char* keys) const {
        Linear product{};
        product.x_type = product.w_type = op.type;
        product.rows = rows, product.inputs = op.size, product.segments = 1;
        product.w_output = op.keys_token;
        Prepared prepared(product);
        for (int64_t row = 0; row < rows; row++)
            prepare_row(prepared, x + row * LANES, rows * LANES,
                        q + row * op.q_token * size_of(op.type), flat);
        Scales none(product, nullptr, nullptr, 0);
        Fetcher fetcher;
        products(Task{product, prepared, keys, x, scores, padded, limit, none, nullptr, fetcher});
    }

    void softmax() const {
        float factor = float(op.scale);
        Floats lanes;
        for (int lane = 0; lane < LANES; lane++) lanes[lane] = lane;
        for (int64_t row = 0; row < rows; row++) {
            float* of_row = scores + row * padded;
            float distance = -float(at + row);
            int64_t count = seen(row);
            Floats largest = splat(-std::numeric_limits<float>::max()), total = {};
            for (int64_t t = 0; t < padded; t += LANES) {
                Floats place = lanes + float(t);
                Floats score = load<Floats>(of_row + t) * factor + alibi_bias(slope, place + distance);
                score = place < float(count) ? score : splat(-std::numeric_limits<float>::max());
                largest = greatest(largest, score);
                store(of_row + t, score);
            }
            float top = largest[0];
            for (int lane = 1; lane < LANES; lane++) top = std::max(top, largest[lane]);
            for (int64_t t = 0; t < padded; t += LANES) {
                Floats weight = exp(load<Floats>(of_row + t) - top);
                weight = lanes + float(t) < float(count) ? weight : Floats{};
                total += weight;
                store(of_row + t, weight);
            }
            float scale = 1.0f / sum(total);
            for (int64_t t = 0; t < padded; t += LANES)
                store(of_row + t, load<Floats>(of_row + t) * scale);
        }
    }

    // Elements i to i + 64 of the contexts of four rows.
    template <int64_t TYPE, bool WHOLE>
    void sums(const char* values, char* out, int64_t row, int64_t i) const {
        Floats total[4][4] = {};
        int64_t last = std::min<int64_t>(rows - row, 4), left = op.size - i;
        const float* weights[4];
        for (int r = 0; r < 4; r++) weights[r] = scores + (row + std::min<int64_t>(r, last - 1)) * padded;
        const char* value = values + i * size_of(TYPE);
        int64_t step = op.values_token * size_of(TYPE);
        for (int64_t t = 0; t < limit; t++, value += step) {
            Floats part[4];
            for (int j = 0; j < 4; j++) {
                const char* from = value + j * LANES * size_of(TYPE);
                if constexpr (WHOLE) {
                    part[j] = load_floats(from, TYPE);
                } else {
                    part[j] = left > j * LANES ? load_some(from, TYPE, left - j * LANES) : Floats{};
                }
            }
            for (int r = 0; r < 4; r++)
                for (int j = 0; j < 4; j++) total[r][j] += part[j] * weights[r][t];
        }
        for (int r = 0; r < last; r++)
            for (int j = 0; j < 4 && left > j * LANES; j++) {
                int64_t place = (row + r) * op.out_token + i + j * LANES;
                store_some(out + place * size_of(TYPE), TYPE, total[r][j], left - j * LANES);
            }
    }

    template <int64_t TYPE> void contexts(const char* values, char* out) const {
        for (int64_t row = 0; row < rows; row += 4)
            for (int64_t i = 0; i < op.size; i += 4 * LANES) {
                if (i + 4 * LANES <= op.size) {
                    sums<TYPE, true>(values, out, row, i);
                } else {
                    sums<TYPE, false>(values, out, row, i);
                }
            }
    }
};

void run_few_queries(const Chunk& op, const Worker& worker) {
    int64_t padded = up(op.length, LANES), room = up(op.size, 4 * 2 * BLOCK) + LANES;
    float* x = worker.room<float>(MOST_ROWS * (room + padded) + room);
    float *flat = x + MOST_ROWS * room, *scores = flat + room;
    for_each_part(op, worker, MOST_ROWS, [&](const Part& part) {
        int64_t first = part.position;
        int64_t limit = std::clamp<int64_t>(first + part.rows, 1, op.length);
        Queries some{op, part.rows, first, limit, up(limit, LANES), part.slope, x, flat, scores};
        some.find_scores(part.q, part.keys);
        some.softmax();
        if (op.type == FLOAT32) some.contexts<FLOAT32>(part.values, part.out);
        if (op.type == FLOAT16) some.contexts<FLOAT16>(part.values, part.out);
        if (op.type == BFLOAT16) some.contexts<BFLOAT16>(part.values, part.out);
    });
}

}  // namespace

// Puts the chunk's keys and values in the caches; all threads must meet before they are used.
void keep(const Chunk& op, const Worker& worker) {
    int64_t size = size_of(op.type);
    int64_t heads = op.heads / op.group, items = count_of(op.mesh) * heads;
    for (int64_t item = worker.next(items); item >= 0; item = worker.next(items)) {
        MeshPosition place(op.mesh, item / heads);
        int64_t head = item % heads;
        const char* k = at(op.k, op.type, place.offset(op.k_mesh) + head * op.k_head);
        const char* v = at(op.v, op.type, place.offset(op.v_mesh) + head * op.v_head);
        char* keys = at(op.keys, op.type, place.offset(op.keys_mesh) + head * op.keys_head);
        char* values = at(op.values, op.type, place.offset(op.values_mesh) + head * op.values_head);
        for (int64_t token = 0; token < op.tokens; token++) {
            int64_t row = cache_row(op, token), begin = op.position[token / op.block];
            int64_t slot = std::clamp<int64_t>(begin, 0, op.length - op.block) + token % op.block;
            std::memcpy(keys + (row * op.keys_row + slot * op.keys_token) * size,
                        k + token * op.k_token * size, op.size * size);
            std::memcpy(values + (row * op.values_row + slot * op.values_token) * size,
                        v + token * op.v_token * size, op.size * size);
        }
    }
}

void run(const Chunk& op, const Worker& worker) {
#ifdef POPXL_PANELS
    if (op.size <= MOST_SIZE) return run_flash(op, worker);
#endif
    run_few_queries(op, worker);
}

}  // namespace popxl
