// Layer norm (arXiv 1607.06450) of rows whose parts may lie apart, one a shard.

#include "vectors.hpp"
#include "work.hpp"

namespace popxl {

// A row is `segments` parts of `size` elements.

namespace {

struct Row {
    const Norm& op;
    int64_t x, weight, out;  // where its first segments lie
    float* values;           // [segments][size, padded]
    int64_t padded;

    void run() const {
        for (int64_t segment = 0; segment < op.segments; segment++)
            to_floats(values + segment * padded, at(op.x, op.x_type, x + segment * op.x_segment),
                      op.x_type, op.size);
        float count = float(op.size * op.segments), mean = total([](Floats v) { return v; }) / count;
        Floats centre = splat(mean);
        float variance = total([&](Floats v) { return (v - centre) * (v - centre); }) / count;
        float factor = 1.0f / std::sqrt(variance + float(op.epsilon));
        for (int64_t segment = 0; segment < op.segments; segment++)
            for (int64_t i = 0; i < op.size; i += LANES) write(segment, i, mean, factor);
    }

    template <class F> float total(F of) const {
        Floats sums[4] = {};  // additions that need not wait for each other
        for (int64_t segment = 0; segment < op.segments; segment++) {
            const float* from = values + segment * padded;
            int64_t i = 0;
            for (; i + 4 * LANES <= op.size; i += 4 * LANES)
                for (int j = 0; j < 4; j++) sums[j] += of(load<Floats>(from + i + j * LANES));
            for (; i < op.size; i += LANES) {
                Floats value = of(load<Floats>(from + i));
                sums[0] += load_some(reinterpret_cast<char*>(&value), FLOAT32, op.size - i);
            }
        }
        return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }

    void write(int64_t segment, int64_t i, float mean, float factor) const {
        int64_t count = op.size - i, place = weight + segment * op.weight_segment + i;
        Floats scale = load_some(at(op.weight, op.weight_type, place), op.weight_type, count);
        Floats shift = load_some(at(op.bias, op.weight_type, place), op.weight_type, count);
        Floats y = (load<Floats>(values + segment * padded + i) - mean) * factor * scale + shift;
        store_some(at(op.out, op.x_type, out + segment * op.out_segment + i), op.x_type, y, count);
    }
};

}  // namespace

void run(const Norm& op, const Worker& worker) {
    int64_t padded = (op.size + LANES - 1) / LANES * LANES;
    float* values = worker.room<float>(padded * op.segments);
    int64_t items = count_of(op.mesh) * op.rows;
    for (int64_t item = worker.next(items); item >= 0; item = worker.next(items)) {
        int64_t m = item / op.rows, row = item % op.rows;
        MeshPosition place(op.mesh, m);
        Row{op, place.offset(op.x_mesh) + row * op.x_row, place.offset(op.weight_mesh),
            place.offset(op.out_mesh) + row * op.out_row, values, padded}
            .run();
    }
}

}  // namespace popxl
