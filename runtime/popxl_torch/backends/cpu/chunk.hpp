// What the attention of a chunk is given.

#pragma once

#include <algorithm>

#include "alibi.hpp"
#include "vectors.hpp"
#include "work.hpp"

namespace popxl {

namespace {

int64_t cache_row(const Chunk& op, int64_t token) {
    return std::clamp<int64_t>(op.row[token / op.block], 0, op.rows - 1);
}

int64_t position_of(const Chunk& op, int64_t token) {
    return op.position[token / op.block] + token % op.block;
}

// How many tokens from `first` on, `most` at most, follow each other in a row.
int64_t following(const Chunk& op, int64_t first, int64_t most) {
    int64_t count = std::min(op.block - first % op.block, most);
    while (count < most && cache_row(op, first + count) == cache_row(op, first) &&
           position_of(op, first + count) == position_of(op, first) + count)
        count = std::min(count + op.block, most);
    return count;
}

// Some queries of one head that follow each other; where theirs and the head's tensors begin.
struct Part {
    int64_t rows, position;  // `position` is that of the first query
    float slope;
    const char *q, *keys, *values;
    char* out;
};

// Gives this thread's parts of a chunk, of `most` queries, to a function.
template <class F> void for_each_part(const Chunk& op, const Worker& worker, int64_t most, F run) {
    int64_t blocks = (op.tokens + most - 1) / most;
    int64_t items = count_of(op.mesh) * op.heads * blocks;
    for (int64_t item = worker.next(items); item >= 0; item = worker.next(items)) {
        MeshPosition place(op.mesh, item / (op.heads * blocks));
        int64_t head = item / blocks % op.heads, first = item % blocks * most;
        int64_t shared = head / op.group;  // the head of keys and values
        auto start = [&](const int64_t(&mesh)[3], int64_t begin, int64_t number, int64_t step) {
            return place.offset(mesh) + begin + number * step;
        };
        int64_t end = std::min(first + most, op.tokens);
        for (int64_t count; first < end; first += count) {
            count = following(op, first, end - first);
            int64_t row = cache_row(op, first);
            run(Part{count, position_of(op, first), alibi_slope(op, place, head),
                     at(op.q, op.type, start(op.q_mesh, first * op.q_token, head, op.q_head)),
                     at(op.keys, op.type, start(op.keys_mesh, row * op.keys_row, shared, op.keys_head)),
                     at(op.values, op.type,
                        start(op.values_mesh, row * op.values_row, shared, op.values_head)),
                     at(op.out, op.type, start(op.out_mesh, first * op.out_token, head, op.out_head))});
        }
    }
}

}  // namespace
}  // namespace popxl
