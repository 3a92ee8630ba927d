// Vectors of 16 floats, and how the types of tensors become such.
//
// Written with the compiler's own vector types, which every target has; where AVX-512 is there, the
// few functions that those express badly use its instructions.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "instructions.hpp"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace popxl {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

template <class V> inline V load(const void* from) {
    V value;
    std::memcpy(&value, from, sizeof(V));
    return value;
}

template <class V> inline void store(void* to, V value) { std::memcpy(to, &value, sizeof(V)); }

inline Floats splat(float value) { return Floats{} + value; }

// The same bits.
inline Floats as_floats(Words bits) { return (Floats)bits; }
inline Words as_words(Floats values) { return (Words)values; }

inline float half_to_float(uint16_t half) {
    uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff, bits;
    if (rest >= 0x7c00) {
        bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
        bits = sign | ((rest << 13) + 0x38000000);
    } else {
        float value = float(rest) * 0x1p-24f;
        return sign ? -value : value;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint16_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x47800000) return sign | 0x7c00;
    if (bits < 0x38800000) {  // below the normal numbers: steps of 2^-24
        std::memcpy(&value, &bits, 4);
        return sign | uint16_t(std::nearbyint(value * 0x1p24f));
    }
    bits += 0xfff + (bits >> 13 & 1);  // to the nearest, ties to even
    return sign | uint16_t((bits - 0x38000000) >> 13);
}

inline Floats from_float16(Halves halves) {
#ifdef __AVX512F__
    return (Floats)_mm512_cvtph_ps((__m256i)halves);
#else
    Floats values;
    for (int i = 0; i < LANES; i++) values[i] = half_to_float(halves[i]);
    return values;
#endif
}

inline Halves to_float16(Floats values) {
#ifdef __AVX512F__
    return (Halves)_mm512_cvtps_ph((__m512)values, _MM_FROUND_TO_NEAREST_INT);
#else
    Halves halves;
    for (int i = 0; i < LANES; i++) halves[i] = float_to_half(values[i]);
    return halves;
#endif
}

inline Floats from_bfloat16(Halves halves) {
#ifdef __AVX512F__
    return as_floats((Words)_mm512_cvtepu16_epi32((__m256i)halves) << 16);
#endif
    return as_floats(__builtin_convertvector(halves, Words) << 16);
}

inline Halves to_bfloat16(Floats values) {
#ifdef __AVX512BF16__
    return (Halves)_mm512_cvtneps_pbh((__m512)values);
#endif
    Words bits = as_words(values), rounded = bits + 0x7fff + ((bits >> 16) & 1);
    Words is_nan = (Words)((bits & 0x7fffffff) > 0x7f800000);
    bits = (rounded & ~is_nan) | ((bits | 0x400000) & is_nan);
    return __builtin_convertvector(bits >> 16, Halves);
}

inline Floats from_int8(Bytes bytes) {
#ifdef __AVX512F__
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)bytes));
#else
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
#endif
}

constexpr int64_t size_of(int64_t type) {
    return type == FLOAT32 ? 4 : type == INT8 ? 1 : 2;
}

inline const char* at(const void* base, int64_t type, int64_t index) {
    return static_cast<const char*>(base) + index * size_of(type);
}

inline char* at(void* base, int64_t type, int64_t index) {
    return static_cast<char*>(base) + index * size_of(type);
}

// 16 numbers of a float type.
inline Floats load_floats(const char* from, int64_t type) {
    if (type == FLOAT32) return load<Floats>(from);
    Halves halves = load<Halves>(from);
    return type == FLOAT16 ? from_float16(halves) : from_bfloat16(halves);
}

inline void store_floats(char* to, int64_t type, Floats values) {
    if (type == FLOAT32) return store(to, values);
    store(to, type == FLOAT16 ? to_float16(values) : to_bfloat16(values));
}

// The first `count` of 16 numbers, zeros behind them; nothing beyond them is touched.
inline Floats load_some(const char* from, int64_t type, int64_t count) {
    if (count >= LANES) return load_floats(from, type);
    char whole[sizeof(Floats)] = {};
    std::memcpy(whole, from, count * size_of(type));
    return load_floats(whole, type);
}

inline void store_some(char* to, int64_t type, Floats values, int64_t count) {
    if (count >= LANES) return store_floats(to, type, values);
    char whole[sizeof(Floats)];
    store_floats(whole, type, values);
    std::memcpy(to, whole, count * size_of(type));
}

inline void to_floats(float* to, const char* from, int64_t type, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        Floats values = load_some(from + i * size_of(type), type, count - i);
        if (count - i >= LANES) {
            store(to + i, values);
        } else {
            std::memcpy(to + i, &values, (count - i) * sizeof(float));
        }
    }
}

#ifdef __AVX512F__
// Four vectors with their halves and then the halves of those added up: four floats of each.
inline __m512 quarters(__m512 a, __m512 b, __m512 c, __m512 d) {
    auto added = [](__m512 a, __m512 b) {  // of each, its first half plus its second one
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    };
    __m512 ab = added(a, b), cd = added(c, d);
    return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}
#endif

// The sums of four vectors, each in the same fixed order: halves, quarters, ...
inline void sums_of_four(const Floats* v, float* to) {
#ifdef __AVX512F__
    __m512 s = quarters((__m512)v[0], (__m512)v[1], (__m512)v[2], (__m512)v[3]);
    s = _mm512_add_ps(s, _mm512_shuffle_ps(s, s, 0x4e));
    s = _mm512_add_ps(s, _mm512_shuffle_ps(s, s, 0xb1));
    _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, s)));
#else
    for (int n = 0; n < 4; n++) {
        float part[LANES];
        store(part, v[n]);
        for (int step = LANES / 2; step; step /= 2)
            for (int i = 0; i < step; i++) part[i] += part[i + step];
        to[n] = part[0];
    }
#endif
}

// The sums of 16 vectors, `step` apart, in the same order.
inline Floats sums_of_sixteen(const Floats* v, int64_t step) {
#ifdef __AVX512F__
    __m512 parts[4];  // of four vectors each, four parts of a sum side by side
    for (int n = 0; n < 4; n++, v += 4 * step)
        parts[n] = quarters((__m512)v[0], (__m512)v[step], (__m512)v[2 * step], (__m512)v[3 * step]);
    auto added = [](__m512 a, __m512 b) {  // parts 0 and 2, 1 and 3
        return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    };
    __m512 a = added(parts[0], parts[1]), b = added(parts[2], parts[3]);
    __m512 s = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    return (Floats)_mm512_permutexvar_ps(order, s);
#else
    Floats sums;
    for (int n = 0; n < LANES; n += 4) {
        Floats some[4] = {v[n * step], v[(n + 1) * step], v[(n + 2) * step], v[(n + 3) * step]};
        sums_of_four(some, reinterpret_cast<float*>(&sums) + n);
    }
    return sums;
#endif
}

inline float sum(Floats v) {
    Floats four[4] = {v, v, v, v};
    float sums[4];
    sums_of_four(four, sums);
    return sums[0];
}

inline Floats least(Floats a, Floats b) {
#ifdef __AVX512F__
    return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return a < b ? a : b;
#endif
}

inline Floats greatest(Floats a, Floats b) {
#ifdef __AVX512F__
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

inline Floats nearest(Floats x) {
#ifdef __AVX512F__
    return (Floats)_mm512_roundscale_ps((__m512)x, 0);
#else
    Ints whole = __builtin_convertvector(x + (x < 0 ? splat(-0.5f) : splat(0.5f)), Ints);
    return __builtin_convertvector(whole, Floats);
#endif
}

// x 2^n for whole numbers n from -126 to 127.
inline Floats times_power_of_two(Floats x, Floats n) {
#ifdef __AVX512F__
    return (Floats)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
    return x * as_floats((Words)(__builtin_convertvector(n, Ints) + 127) << 23);
#endif
}

// e^x to about one unit in the last place: 2^n times a polynomial on [-ln(2)/2, ln(2)/2], whose
// coefficients are those of the Taylor series.
inline Floats exp(Floats x) {
    x = greatest(least(x, splat(87.0f)), splat(-87.0f));  // so that 1 / e^x is no small number either
    Floats n = nearest(x * 1.44269504f);
    Floats r = x - n * 0.693145752f;  // ln(2) in two parts, the first of few bits
    r = r - n * 1.42860677e-6f;
    Floats p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return times_power_of_two(p, n);
}

// 1 / x, one step of Newton's from 14 bits where there are such.
inline Floats reciprocal(Floats x) {
#ifdef __AVX512F__
    Floats r = (Floats)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

// x / (1 + e^(-2 sqrt(2 / pi) (x + 0.044715 x^3))): the tanh form of GELU (arXiv 1606.08415).
inline Floats gelu(Floats x) {
    Floats inner = x * (x * x * 0.044715f + 1.0f) * 1.5957691216f;
    return x * reciprocal(exp(-inner) + 1.0f);
}

inline Floats gelu_exact(Floats x) {
    for (int i = 0; i < LANES; i++) x[i] *= 0.5f * (1.0f + std::erf(x[i] * 0.70710678f));
    return x;
}

}  // namespace popxl
