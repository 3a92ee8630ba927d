// What follows a product: activation(y + bias) * gate + residual, in the result's type.

#pragma once

#include "vectors.hpp"
#include "work.hpp"

namespace popxl {
namespace {

inline Floats activated(int64_t activation, Floats y) {
    switch (activation) {
        case GELU: return gelu(y);
        case GELUERF: return gelu_exact(y);
        case SWISH: return y * reciprocal(exp(-y) + 1.0f);
        case RELU: return y < 0.0f ? Floats{} : y;
        default: return y;
    }
}

// One row of the outputs from number `first` on, of a shard.
template <class Op> struct Epilogue {
    const Op& op;
    const char *bias, *gate, *residual;
    char* out;

    Epilogue(const Op& op, const MeshPosition& place, int64_t row, int64_t first) : op(op) {
        auto start = [&](const void* from, int64_t type, int64_t index) {
            return from ? at(from, type, index + first) : nullptr;
        };
        bias = start(op.bias, op.bias_type, place.offset(op.bias_mesh));
        gate = start(op.gate, op.gate_type, place.offset(op.gate_mesh) + row * op.gate_row);
        residual = start(op.residual, op.residual_type,
                         place.offset(op.residual_mesh) + row * op.residual_row);
        out = at(op.out, op.out_type, place.offset(op.out_mesh) + row * op.out_row + first);
    }

    // Of sums `y`, number `o` of the outputs and those behind it, `count` of them at the most.
    void put(int64_t o, int64_t count, Floats y) const {
        if (bias) y += some(bias, op.bias_type, o, count);
        if (op.activation) y = activated(op.activation, y);
        if (gate) y *= some(gate, op.gate_type, o, count);
        if (residual) y += some(residual, op.residual_type, o, count);
        store_some(out + o * size_of(op.out_type), op.out_type, y, count);
    }

    static Floats some(const char* from, int64_t type, int64_t o, int64_t count) {
        return load_some(from + o * size_of(type), type, count);
    }

    void next_row() {
        if (gate) gate += op.gate_row * size_of(op.gate_type);
        if (residual) residual += op.residual_row * size_of(op.residual_type);
        out += op.out_row * size_of(op.out_type);
    }
};

}  // namespace
}  // namespace popxl
