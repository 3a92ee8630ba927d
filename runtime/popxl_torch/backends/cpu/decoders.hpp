// Weights as floats, or as the pairs of bfloat16 that they are.

#pragma once

#include "linear.hpp"
#include "nibbles.hpp"

namespace popxl {
namespace {

// For each type: how many vectors a block makes, which element number `i` of vector v is, and the
// vectors themselves.
template <int64_t TYPE, bool PAIRS> struct Decoder;

template <> struct Decoder<FLOAT32, false> {
    static constexpr int VECTORS = 1;
    static int element(int, int i) { return i; }
    Floats raw;
    explicit Decoder(const char* from) : raw(load<Floats>(from)) {}
    template <int V> Floats get() const { return raw; }
};

template <> struct Decoder<FLOAT16, false> {
    static constexpr int VECTORS = 2;
    static int element(int v, int i) { return v * LANES + i; }
    const char* from;
    explicit Decoder(const char* from) : from(from) {}
    template <int V> Floats get() const { return from_float16(load<Halves>(from + 32 * V)); }
};

template <> struct Decoder<BFLOAT16, false> {  // even elements, then odd ones
    static constexpr int VECTORS = 2;
    static int element(int v, int i) { return 2 * i + v; }
    Words raw;
    explicit Decoder(const char* from) : raw(load<Words>(from)) {}
    template <int V> Floats get() const { return as_floats(V ? raw & 0xffff0000 : raw << 16); }
};

template <> struct Decoder<BFLOAT16, true> {
    static constexpr int VECTORS = 1;
    Floats raw;
    explicit Decoder(const char* from) : raw(load<Floats>(from)) {}
    template <int V> Floats get() const { return raw; }
};

template <> struct Decoder<INT8, false> {
    static constexpr int VECTORS = 4;
    static int element(int v, int i) { return v * LANES + i; }
    const char* from;
    explicit Decoder(const char* from) : from(from) {}
    template <int V> Floats get() const { return from_int8(load<Bytes>(from + 16 * V)); }
};

template <> struct Decoder<NIBBLES, false> {
    static constexpr int VECTORS = 8;
    static int element(int v, int i) { return nibble_number(v, i); }
    Words raw;
    explicit Decoder(const char* from) : raw(load<Words>(from)) {}
    template <int V> Floats get() const {
        return __builtin_convertvector(nibbles_of_block<V>(raw), Floats);
    }
};

inline Floats add_products(Floats sums, Floats weights, Floats values, bool pairs) {
#ifdef POPXL_PAIRS
    if (pairs) return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)weights, (__m512bh)values);
#endif
    return sums + weights * values;
}

}  // namespace
}  // namespace popxl
