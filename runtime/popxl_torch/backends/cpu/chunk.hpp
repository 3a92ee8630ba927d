// What the attention of a chunk is given.

#pragma once

#include <algorithm>

#include "alibi.hpp"
#include "vectors.hpp"
#include "work.hpp"

namespace popxl {

namespace {

int64_t cache_row(const Chunk& op) { return std::clamp<int64_t>(*op.row, 0, op.rows - 1); }

// Some queries of one head, `rows` from number `first` on; where theirs and the head's tensors begin.
struct Part {
    int64_t first, rows, position;  // `position` is that of the chunk's first query
    float slope;
    const char *q, *keys, *values;
    char* out;
};

// Gives this thread's parts of a chunk, of `most` queries, to a function.
template <class F> void for_each_part(const Chunk& op, const Worker& worker, int64_t most, F run) {
    int64_t blocks = (op.tokens + most - 1) / most, row = cache_row(op);
    int64_t items = count_of(op.mesh) * op.heads * blocks;
    for (int64_t item = worker.next(items); item >= 0; item = worker.next(items)) {
        MeshPosition place(op.mesh, item / (op.heads * blocks));
        int64_t head = item / blocks % op.heads, first = item % blocks * most;
        int64_t shared = head / op.group;  // the head of keys and values
        auto start = [&](const int64_t(&mesh)[3], int64_t begin, int64_t number, int64_t step) {
            return place.offset(mesh) + begin + number * step;
        };
        run(Part{first, std::min<int64_t>(op.tokens - first, most), *op.position,
                 alibi_slope(op, place, head),
                 at(op.q, op.type, start(op.q_mesh, first * op.q_token, head, op.q_head)),
                 at(op.keys, op.type, start(op.keys_mesh, row * op.keys_row, shared, op.keys_head)),
                 at(op.values, op.type,
                    start(op.values_mesh, row * op.values_row, shared, op.values_head)),
                 at(op.out, op.type, start(op.out_mesh, first * op.out_token, head, op.out_head))});
    }
}

}  // namespace
}  // namespace popxl
