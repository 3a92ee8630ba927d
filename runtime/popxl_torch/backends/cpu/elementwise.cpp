// Elementwise ops and reductions of rows, one after another on a row that stays in the cache.
//
// Each op rounds its result as its dtype asks, so that nothing differs from doing it op by op.

#include <cmath>
#include <limits>

#include "vectors.hpp"
#include "work.hpp"

namespace popxl {

namespace {

// e^x also where it is too large or small for a float, or x is no number.
inline Floats exp_everywhere(Floats x) {
    Floats y = exp(x);
    const Floats zero = {}, inf = splat(std::numeric_limits<float>::infinity());
    y = x < -87.0f ? zero : y;
    y = x > 88.72284f ? inf : x > 87.0f ? exp(x - 2.0f) * 7.38905610f : y;
    return x == x ? y : x;
}

inline Floats rounded(Floats x, int64_t type) {
    return type == FLOAT16 ? from_float16(to_float16(x)) : type == BFLOAT16 ? from_bfloat16(to_bfloat16(x)) : x;
}

template <class F> inline Floats each(Floats x, F of) {
    for (int i = 0; i < LANES; i++) x[i] = of(x[i]);
    return x;
}

inline Floats square_root(Floats x) {
#ifdef __AVX512F__
    return (Floats)_mm512_sqrt_ps((__m512)x);
#else
    return each(x, [](float v) { return std::sqrt(v); });
#endif
}

// One thread's registers, `padded` floats each; what is `one` has its value in all lanes of the first
// vector.
struct RowMachine {
    const Elementwise& op;
    float* registers;
    int64_t padded;
    bool one[MOST_REGISTERS] = {};

    float* reg(int number) const { return registers + number * padded; }

    // Vector `i` of a register.
    Floats get(int number, int64_t i) const { return load<Floats>(reg(number) + (one[number] ? 0 : i)); }

    int64_t length(const StepOf& s) const { return s.one ? 1 : op.row; }

    template <class F> void elementwise(const StepOf& s, F of) {
        float* to = reg(s.to);
        int64_t count = length(s);
        switch (s.type) {
            case FLOAT16:
                for (int64_t i = 0; i < count; i += LANES) store(to + i, rounded(of(i), FLOAT16));
                break;
            case BFLOAT16:
                for (int64_t i = 0; i < count; i += LANES) store(to + i, rounded(of(i), BFLOAT16));
                break;
            default:
                for (int64_t i = 0; i < count; i += LANES) store(to + i, of(i));
        }
    }

    template <class F> void unary(const StepOf& s, F of) {
        elementwise(s, [&](int64_t i) { return of(get(s.a, i)); });
    }

    template <class F> void binary(const StepOf& s, F of) {
        elementwise(s, [&](int64_t i) { return of(get(s.a, i), get(s.b, i)); });
    }

    // The sum of a register's row, or its greatest element, in a fixed order.
    template <class F> float reduced(int number, float first, F of) const {
        Floats parts[4] = {splat(first), splat(first), splat(first), splat(first)};
        int64_t i = 0;
        for (; i + 4 * LANES <= op.row; i += 4 * LANES)
            for (int j = 0; j < 4; j++) parts[j] = of(parts[j], get(number, i + j * LANES));
        for (; i + LANES <= op.row; i += LANES) parts[0] = of(parts[0], get(number, i));
        Floats all = of(of(parts[0], parts[1]), of(parts[2], parts[3]));
        float result = all[0];
        for (int lane = 1; lane < LANES; lane++) result = of(splat(result), splat(all[lane]))[0];
        const float* from = reg(number);
        for (; i < op.row; i++) result = of(splat(result), splat(from[i]))[0];
        return result;
    }

    float total(int number) const {
        return reduced(number, 0, [](Floats a, Floats b) { return a + b; });
    }

    float most(int number) const {
        return reduced(number, -std::numeric_limits<float>::infinity(), larger);
    }

    static Floats larger(Floats a, Floats b) { return a != a ? a : b != b ? b : a > b ? a : b; }

    void set(const StepOf& s, float value) { store(reg(s.to), rounded(splat(value), s.type)); }

    void softmax(const StepOf& s) {
        float greatest = most(s.a), *to = reg(s.to);
        for (int64_t i = 0; i < op.row; i += LANES)
            store(to + i, exp_everywhere(get(s.a, i) - greatest));
        float all = total(s.to);
        elementwise(s, [&](int64_t i) { return load<Floats>(to + i) / all; });
    }

    void load_operand(const StepOf& s, const int64_t (&index)[OUTER_AXES]) {
        const Strided& from = op.operands[s.a];
        int64_t place = offset(from, index), count = length(s);
        float* to = reg(s.to);
        if (s.one || from.inner == 0) {
            Floats value = splat(single(from, place));
            for (int64_t i = 0; i < count; i += LANES) store(to + i, value);
        } else if (from.inner == 1 && from.type <= BFLOAT16) {
            const char* data = at(from.data, from.type, place);
            switch (from.type) {
                case FLOAT32: return load_row<FLOAT32>(to, data, count);
                case FLOAT16: return load_row<FLOAT16>(to, data, count);
                default: return load_row<BFLOAT16>(to, data, count);
            }
        } else {
            for (int64_t i = 0; i < count; i++) to[i] = single(from, place + i * from.inner);
        }
    }

    template <int64_t TYPE> static void load_row(float* to, const char* data, int64_t count) {
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) store(to + i, load_floats(data + i * size_of(TYPE), TYPE));
        if (i < count) store(to + i, load_some(data + i * size_of(TYPE), TYPE, count - i));
    }

    template <int64_t TYPE> void store_row(char* to, int number) const {
        int64_t i = 0;
        for (; i + LANES <= op.row; i += LANES) store_floats(to + i * size_of(TYPE), TYPE, get(number, i));
        if (i < op.row) store_some(to + i * size_of(TYPE), TYPE, get(number, i), op.row - i);
    }

    static int64_t offset(const Strided& t, const int64_t (&index)[OUTER_AXES]) {
        int64_t place = 0;
        for (int axis = 0; axis < OUTER_AXES; axis++) place += index[axis] * t.strides[axis];
        return place;
    }

    static float single(const Strided& t, int64_t place) {
        const char* data = static_cast<const char*>(t.data);
        if (t.type == INT32) return float(load<int32_t>(data + 4 * place));
        if (t.type == BOOL) return data[place] != 0;
        return load_some(data + place * size_of(t.type), t.type, 1)[0];
    }

    void write(const int64_t (&index)[OUTER_AXES]) {
        const Strided& to = op.out;
        int64_t place = offset(to, index);
        int number = op.program[op.steps - 1].to;
        if (to.inner == 1) {
            char* data = at(to.data, to.type, place);
            switch (to.type) {
                case FLOAT32: return store_row<FLOAT32>(data, number);
                case FLOAT16: return store_row<FLOAT16>(data, number);
                default: return store_row<BFLOAT16>(data, number);
            }
        }
        for (int64_t i = 0; i < op.row; i++) {
            Floats y = get(number, i / LANES * LANES);
            char* data = at(to.data, to.type, place + i * to.inner);
            store_some(data, to.type, splat(y[i % LANES]), 1);
        }
    }

    void run(const int64_t (&index)[OUTER_AXES]) {
        for (int64_t n = 0; n < op.steps; n++) {
            const StepOf& s = op.program[n];
            step(s, index);
            one[s.to] = s.one;
        }
        write(index);
    }

    void step(const StepOf& s, const int64_t (&index)[OUTER_AXES]) {
        const Floats zero = {}, yes = splat(1);
        switch (s.kind) {
            case STEP_LOAD: return load_operand(s, index);
            case STEP_CONSTANT: return store(reg(s.to), splat(float(s.value)));
            case STEP_ADD: return binary(s, [](Floats a, Floats b) { return a + b; });
            case STEP_SUB: return binary(s, [](Floats a, Floats b) { return a - b; });
            case STEP_MUL: return binary(s, [](Floats a, Floats b) { return a * b; });
            case STEP_DIV: return binary(s, [](Floats a, Floats b) { return a / b; });
            case STEP_MAXIMUM: return binary(s, larger);
            case STEP_NEGATE: return unary(s, [](Floats a) { return -a; });
            case STEP_ABS: return unary(s, [](Floats a) { return as_floats(as_words(a) & 0x7fffffff); });
            case STEP_SQRT: return unary(s, square_root);
            case STEP_EXP: return unary(s, exp_everywhere);
            case STEP_LOG: return unary(s, [](Floats a) { return each(a, [](float v) { return std::log(v); }); });
            case STEP_TANH: return unary(s, [](Floats a) { return each(a, [](float v) { return std::tanh(v); }); });
            case STEP_RELU: return unary(s, [=](Floats a) { return a < 0.0f ? zero : a; });
            case STEP_SWISH: return unary(s, [](Floats a) { return a / (exp_everywhere(-a) + 1.0f); });
            case STEP_COS: return unary(s, [](Floats a) { return each(a, [](float v) { return std::cos(v); }); });
            case STEP_SIN: return unary(s, [](Floats a) { return each(a, [](float v) { return std::sin(v); }); });
            case STEP_GREATER: return binary(s, [=](Floats a, Floats b) { return a > b ? yes : zero; });
            case STEP_EQUAL: return binary(s, [=](Floats a, Floats b) { return a == b ? yes : zero; });
            case STEP_WHERE:
                return elementwise(s, [&](int64_t i) {
                    return get(s.a, i) != 0.0f ? get(s.b, i) : get(s.c, i);
                });
            case STEP_CAST: return unary(s, [](Floats a) { return a; });
            case STEP_SUM: return set(s, total(s.a));
            case STEP_MEAN: return set(s, total(s.a) / float(op.row));
            case STEP_MAX: return set(s, most(s.a));
            default: return softmax(s);
        }
    }
};

}  // namespace

void run(const Elementwise& op, const Worker& worker) {
    int64_t padded = (op.row + LANES - 1) / LANES * LANES, rows = 1;
    for (int64_t size : op.sizes) rows *= size;
    RowMachine machine{op, worker.room<float>(padded * MOST_REGISTERS), padded};
    worker.pieces(rows, op.row, [&](int64_t row) {
        int64_t index[OUTER_AXES], rest = row;
        for (int axis = OUTER_AXES - 1; axis >= 0; axis--) {
            index[axis] = rest % op.sizes[axis];
            rest /= op.sizes[axis];
        }
        machine.run(index);
    });
}

}  // namespace popxl
