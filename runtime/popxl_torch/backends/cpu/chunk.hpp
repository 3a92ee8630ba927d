// What the attention of a chunk is given.

#pragma once

#include <algorithm>

#include "vectors.hpp"
#include "work.hpp"

namespace popxl {

// All fields have 8 bytes; strides are in elements. Elements of a head lie side by side.
struct Chunk {
    const void *q, *k, *v, *slopes;
    const int32_t *position, *row;  // of the first query; of all in the caches
    void *keys, *values, *out;
    int64_t type, tokens, heads, size, rows, length;
    int64_t mesh[3];
    int64_t q_mesh[3], q_token, q_head;
    int64_t k_mesh[3], k_token, k_head;
    int64_t v_mesh[3], v_token, v_head;
    int64_t keys_mesh[3], keys_row, keys_head, keys_token;
    int64_t values_mesh[3], values_row, values_head, values_token;
    int64_t slopes_mesh[3];
    int64_t out_mesh[3], out_token, out_head;

    int64_t cache_row() const { return std::clamp<int64_t>(*row, 0, rows - 1); }
};

namespace {

// Some queries of one head, `rows` from number `first` on; where theirs and the head's tensors begin.
struct Part {
    int64_t first, rows, position;  // `position` is that of the chunk's first query
    float slope;
    const char *q, *keys, *values;
    char* out;
};

// Gives this thread's parts of a chunk, of `most` queries, to a function.
template <class F> void for_each_part(const Chunk& op, const Share& share, int64_t most, F run) {
    int64_t blocks = (op.tokens + most - 1) / most, row = op.cache_row();
    int64_t items = count_of(op.mesh) * op.heads * blocks;
    for (int64_t item = share.next(items); item >= 0; item = share.next(items)) {
        Place place(op.mesh, item / (op.heads * blocks));
        int64_t head = item / blocks % op.heads, first = item % blocks * most;
        auto start = [&](const int64_t(&mesh)[3], int64_t token_step, int64_t head_step) {
            return place.offset(mesh) + first * token_step + head * head_step;
        };
        run(Part{first, std::min<int64_t>(op.tokens - first, most), *op.position,
                 static_cast<const float*>(op.slopes)[place.offset(op.slopes_mesh) + head],
                 at(op.q, op.type, start(op.q_mesh, op.q_token, op.q_head)),
                 at(op.keys, op.type, start(op.keys_mesh, 0, op.keys_head) + row * op.keys_row),
                 at(op.values, op.type, start(op.values_mesh, 0, op.values_head) + row * op.values_row),
                 at(op.out, op.type, start(op.out_mesh, op.out_token, op.out_head))});
    }
}

}  // namespace
}  // namespace popxl
