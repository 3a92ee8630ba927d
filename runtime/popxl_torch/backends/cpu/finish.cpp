// Bias, activation and what is added, after a product of many rows: one pass.

#include "vectors.hpp"
#include "work.hpp"

namespace popxl {

void run(const Finish& op, const Worker& worker) {
    int64_t items = count_of(op.mesh) * op.rows;
    for (int64_t item = worker.next(items); item >= 0; item = worker.next(items)) {
        MeshPosition place(op.mesh, item / op.rows);
        int64_t row = item % op.rows, of_x = place.offset(op.x_mesh) + row * op.x_row;
        int64_t of_bias = place.offset(op.bias_mesh);
        int64_t of_residual = place.offset(op.residual_mesh) + row * op.residual_row;
        int64_t of_out = place.offset(op.out_mesh) + row * op.out_row;
        for (int64_t o = 0; o < op.outputs; o += LANES) {
            int64_t count = op.outputs - o;
            Floats y = load_some(at(op.x, op.x_type, of_x + o), op.x_type, count);
            if (op.bias) y += load_some(at(op.bias, op.bias_type, of_bias + o), op.bias_type, count);
            if (op.activation) y = op.activation == GELU ? gelu(y) : gelu_exact(y);
            if (op.residual)
                y += load_some(at(op.residual, op.residual_type, of_residual + o),
                               op.residual_type, count);
            store_some(at(op.out, op.out_type, of_out + o), op.out_type, y, count);
        }
    }
}

}  // namespace popxl
