// What the attention of a chunk is given.

#pragma once

#include <algorithm>

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
