// What follows a product of many rows: one pass.

#include "epilogue.hpp"

namespace popxl {

void run(const Finish& op, const Worker& worker) {
    int64_t items = count_of(op.mesh) * op.rows;
    for (int64_t item = worker.next(items); item >= 0; item = worker.next(items)) {
        MeshPosition place(op.mesh, item / op.rows);
        int64_t row = item % op.rows;
        const char* x = at(op.x, op.x_type, place.offset(op.x_mesh) + row * op.x_row);
        Epilogue<Finish> epilogue(op, place, row, 0);
        for (int64_t o = 0; o < op.outputs; o += LANES) {
            int64_t count = op.outputs - o;
            epilogue.put(o, count, load_some(x + o * size_of(op.x_type), op.x_type, count));
        }
    }
}

}  // namespace popxl
