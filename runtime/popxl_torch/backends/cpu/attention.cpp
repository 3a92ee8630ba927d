// Attention of one token a row over what is filled of a KV cache.

#include <algorithm>
#include <limits>

#include "alibi.hpp"
#include "vectors.hpp"
#include "work.hpp"

namespace popxl {

namespace {

// One query over `count` keys and values; `query` and `context` are floats of the head's size,
// padded, `scores` has room for `count`.
struct Head {
    const float* query;
    const char *keys, *values;
    int64_t key_step, value_step;  // bytes from one token to the next
    int64_t size, count;
    float factor, slope, at;
    float *scores, *context;
    int64_t next_keys, next_values;  // where those of the head that comes behind it lie, in bytes

    template <int64_t TYPE> void run() const {
        softmax(dots<TYPE>());
        std::fill(context, context + size + LANES, 0.0f);
        for (int64_t i = 0; i < size; i += 4 * LANES) sums<TYPE>(i);
    }

    // For one token's elements to come.
    template <int64_t TYPE> void ask(const char* from) const {
        for (int64_t i = 0; i < size * size_of(TYPE); i += 64) __builtin_prefetch(from + i, 0, 2);
    }

    // The scores; returns the largest one. The next head's keys are asked for meanwhile.
    template <int64_t TYPE> float dots() const {
        float largest = -std::numeric_limits<float>::max();
        for (int64_t t = 0; t < count; t += 4) {
            Floats totals[4] = {};
            float four[4];
            int64_t some = std::min<int64_t>(4, count - t);
            for (int64_t j = 0; j < some; j++) ask<TYPE>(keys + next_keys + (t + j) * key_step);
            for (int64_t j = 0; j < some; j++) totals[j] = dot<TYPE>(keys + (t + j) * key_step);
            sums_of_four(totals, four);
            for (int64_t j = 0; j < some; j++) {
                scores[t + j] = four[j] * factor + alibi_bias(slope, float(t + j) - at);
                largest = std::max(largest, scores[t + j]);
            }
        }
        return largest;
    }

    template <int64_t TYPE> Floats dot(const char* key) const {
        Floats total = {};
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES)
            total += load<Floats>(query + i) * load_floats(key + i * size_of(TYPE), TYPE);
        if (i < size)
            total +=
                load<Floats>(query + i) * load_some(key + i * size_of(TYPE), TYPE, size - i);
        return total;
    }

    void softmax(float largest) const {
        Floats total = {};
        for (int64_t t = 0; t < count; t += LANES) {
            char* place = reinterpret_cast<char*>(scores + t);
            Floats weights = exp(load_some(place, FLOAT32, count - t) - largest);
            store_some(place, FLOAT32, weights, count - t);
            total += load_some(place, FLOAT32, count - t);
        }
        float factor = 1.0f / sum(total);
        for (int64_t t = 0; t < count; t++) scores[t] *= factor;
    }

    // Elements i to i + 64 of the context.
    template <int64_t TYPE> void sums(int64_t i) const {
        Floats total[4] = {};
        bool whole = i + 4 * LANES <= size;
        for (int64_t t = 0; t < count; t++) {
            const char* value = values + t * value_step + i * size_of(TYPE);
            Floats weight = splat(scores[t]);
            if (!i) ask<TYPE>(values + next_values + t * value_step);
            for (int j = 0; j < 4; j++) {
                int64_t left = size - i - j * LANES;
                const char* from = value + j * LANES * size_of(TYPE);
                if (whole) {
                    total[j] += weight * load_floats(from, TYPE);
                } else if (left > 0) {
                    total[j] += weight * load_some(from, TYPE, left);
                }
            }
        }
        for (int j = 0; j < 4; j++) store(context + i + j * LANES, total[j]);
    }
};

void keep(const char* token, char* cache, int64_t bytes) { std::memcpy(cache, token, bytes); }

}  // namespace

void run(const Attention& op, const Worker& worker) {
    int64_t padded = (op.size + 63) / 64 * 64 + LANES;
    float* query = worker.room<float>(2 * padded + op.length + LANES);
    float *context = query + padded, *scores = context + padded;
    int64_t items = count_of(op.mesh) * op.tokens * op.heads;
    for (int64_t item = worker.next(items); item >= 0; item = worker.next(items)) {
        int64_t head = item % op.heads, token = item / op.heads % op.tokens;
        int64_t row = op.row ? std::clamp<int64_t>(op.row[token / op.block], 0, op.rows - 1) : token;
        int64_t shared = head / op.group;  // the head of keys and values
        bool again = (head + 1) % op.group;  // for the next head
        MeshPosition place(op.mesh, item / op.heads / op.tokens);
        auto start = [&](const int64_t(&mesh)[3], int64_t first, int64_t number, int64_t step) {
            return place.offset(mesh) + first + number * step;
        };
        const char* q = at(op.q, op.type, start(op.q_mesh, token * op.q_token, head, op.q_head));
        const char* k = at(op.k, op.type, start(op.k_mesh, token * op.k_token, shared, op.k_head));
        const char* v = at(op.v, op.type, start(op.v_mesh, token * op.v_token, shared, op.v_head));
        char* keys = at(op.keys, op.type, start(op.keys_mesh, row * op.keys_row, shared, op.keys_head));
        char* values =
            at(op.values, op.type, start(op.values_mesh, row * op.values_row, shared, op.values_head));

        int64_t position = op.positions[token], size = size_of(op.type);
        int64_t slot = std::clamp<int64_t>(position, 0, op.length - 1);
        keep(k, keys + slot * op.keys_token * size, op.size * size);
        keep(v, values + slot * op.values_token * size, op.size * size);
        to_floats(query, q, op.type, op.size);
        std::fill(query + op.size, query + padded, 0.0f);
        int64_t end = std::clamp<int64_t>(position + 1, 1, op.length);
        int64_t begin = op.window ? std::max<int64_t>(end - op.window, 0) : 0;
        int64_t key_step = op.keys_token * size, value_step = op.values_token * size;
        Head one{query, keys + begin * key_step, values + begin * value_step, key_step, value_step,
                 op.size, end - begin, float(op.scale), alibi_slope(op, place, head),
                 float(position - begin), scores, context, again ? 0 : op.keys_head * size,
                 again ? 0 : op.values_head * size};
        if (op.type == FLOAT32) one.run<FLOAT32>();
        if (op.type == FLOAT16) one.run<FLOAT16>();
        if (op.type == BFLOAT16) one.run<BFLOAT16>();
        char* out = at(op.out, op.type, start(op.out_mesh, token * op.out_token, head, op.out_head));
        for (int64_t i = 0; i < op.size; i += LANES)
            store_some(out + i * size, op.type, load<Floats>(context + i), op.size - i);
    }
}

}  // namespace popxl
