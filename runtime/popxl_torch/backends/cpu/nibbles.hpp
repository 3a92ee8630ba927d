// Numbers of 4 bits, out of the words that `popxl_shared/groups.py` describes: nothing else in C++
// takes them apart.

#pragma once

#include <algorithm>

#include "processor.hpp"
#include "vectors.hpp"

namespace popxl {
namespace {

static_assert(PER_WORD == 4 && FIRST_SHIFT == 12, "a word has four numbers, the first one highest");

constexpr int64_t nibble_bytes(int64_t count) { return count / 2; }

// The `count` numbers at `from`, 16 at the most, in their order; zeros behind them.
inline Ints nibbles_in_order(const char* from, int64_t count) {
    uint64_t words = 0;
    std::memcpy(&words, from, nibble_bytes(std::min<int64_t>(count, LANES)));
#ifdef POPXL_PANELS
    const __m128i nibble = _mm_set1_epi8(15);
    __m128i bytes = _mm_cvtsi64_si128(words);
    __m128i numbers = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), nibble),
                                        _mm_and_si128(bytes, nibble));
    const __m128i swapped = _mm_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2);
    return (Ints)_mm512_cvtepu8_epi32(_mm_shuffle_epi8(numbers, swapped));
#else
    Ints numbers;
    for (int i = 0; i < LANES; i++)
        numbers[i] = words >> (i / 4 * 16 + FIRST_SHIFT - i % 4 * 4) & 15;
    return numbers;
#endif
}

// A block of 64 bytes as eight vectors: the numbers of vector V, and which one of the block's is
// element `i` of vector `v`.
template <int V> inline Ints nibbles_of_block(Words block) { return (Ints)(block >> (4 * V) & 15); }
constexpr int nibble_number(int v, int i) { return 8 * i + (v & 4) + 3 - (v & 3); }

#ifdef POPXL_BYTES

// A block as bytes: the low halves of its own bytes, and their high ones.
inline void nibbles_as_bytes(const char* block, __m512i (&halves)[2]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i words = _mm512_loadu_si512(block);
    halves[0] = _mm512_and_si512(words, nibble);
    halves[1] = _mm512_and_si512(_mm512_srli_epi16(words, 4), nibble);
}

// For each of 16 words of four bytes: bytes 3 and 1 (of `low`), 2 and 0: what is multiplied with the
// low and with the high halves of the words that hold their weights.
inline void as_nibbles_lie(const char* bytes, char* low, char* high) {
    const __m128i order = _mm_set_epi8(12, 14, 13, 15, 8, 10, 9, 11, 4, 6, 5, 7, 0, 2, 1, 3);
    __m512i words = _mm512_shuffle_epi8(_mm512_loadu_si512(bytes), _mm512_broadcast_i32x4(order));
    _mm256_storeu_si256((__m256i*)low, _mm512_cvtepi32_epi16(words));
    _mm256_storeu_si256((__m256i*)high, _mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)));
}

#endif

}  // namespace
}  // namespace popxl
